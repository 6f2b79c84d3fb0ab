"""Mixing and normalisation of pixels, the last steps before a network, for both stages.

Mixing works on 0..255 values with weights in 1/65536: every product is an integer below 2^24, so
fp32 holds it exactly and the mixed picture has the same bits on every device, fused multiply-add or
not. Arrays may be numpy or torch: only operators are used.

Shapes: B views, S pixels a side.
"""

from typing import Any

import numpy as np

from cache_tools.views.draw import LAMBDA_SCALE


def mix(
    pixels_B3SS: Any,
    partner_B3SS: Any,
    lam_B: Any,
    cut_B4: Any,
    side_S: Any,
    outside_B: Any | None = None,
) -> Any:
    """Mixup, λ·own + (1-λ)·partner, or cutmix, the partner's pixels within the box.

    Args:
        pixels_B3SS: fp32 values 0..255.
        partner_B3SS: The partners' pixels.
        lam_B: fp32 λ in 1/65536, integers 0..65536.
        cut_B4: Cutmix box: top, left, height (0 = mixup), width in pixels.
        side_S: 0, 1, … S - 1 as an array of the same kind.
        outside_B: As `MixParams.outside_B`, fp32.
    """
    weight = weights(lam_B, cut_B4, side_S, outside_B)[:, None]
    return (pixels_B3SS * weight + partner_B3SS * (LAMBDA_SCALE - weight)) / LAMBDA_SCALE


def weights(lam_B: Any, cut_B4: Any, side_S: Any, outside_B: Any | None = None) -> Any:
    """Weight of the view's own pixels in 1/65536, [B, S, S]."""
    top, left, height, width = (cut_B4[:, i, None] for i in range(4))
    rows = (side_S >= top) & (side_S < top + height)
    columns = (side_S >= left) & (side_S < left + width)
    outside = 1.0 - 1.0 * (rows[:, :, None] & columns[:, None, :])
    own = lam_B + (LAMBDA_SCALE - lam_B) * (cut_B4[:, 2] > 0) if outside_B is None else outside_B
    return own[:, None, None] * outside


def normalisation(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, [3] fp32 each, with (RGB / 255 - mean) / std = RGB · scale + offset."""
    scale = 1.0 / (255.0 * np.array(std))
    return scale.astype(np.float32), (-np.array(mean) / np.array(std)).astype(np.float32)
