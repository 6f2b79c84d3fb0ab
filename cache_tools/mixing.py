"""Mixup and normalisation of pixels, the last steps before a network, for both stages.

`mix` works on 0..255 values with λ in 1/65536: every product is an integer below 2^24, so fp32
holds it exactly and the mixed picture has the same bits on every device, fused multiply-add or
not. Arrays may be numpy or torch: only operators are used.
"""

from typing import TypeVar

import numpy as np

from cache_tools.views import LAM_ONE

Array = TypeVar("Array")


def mix(pixels: Array, partner: Array, lam: Array) -> Array:
    """λ·pixels + (1-λ)·partner.

    Args:
        pixels: fp32 values 0..255, [B, ...].
        partner: The partners' pixels, same shape.
        lam: fp32 weights of `pixels` in 1/65536, integers 0..65536, broadcastable.
    """
    return (pixels * lam + partner * (LAM_ONE - lam)) / LAM_ONE  # type: ignore[operator, no-any-return]


def normalisation(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, [3] fp32 each, with (RGB / 255 - mean) / std = RGB · scale + offset."""
    scale = 1.0 / (255.0 * np.array(std))
    return scale.astype(np.float32), (-np.array(mean) / np.array(std)).astype(np.float32)
