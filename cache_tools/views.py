"""From random numbers to the parameters of a view: crop box, flip, affine map, mixup partner.

Parameters know sizes and numbers, never pixels: they can be printed, compared and checked without
an image, and a whole block's are one vectorised call. Distributions follow timm's
(`RandomResizedCropAndInterpolation`, `Mixup` per element); the arithmetic uses `exact`, so that the
same bits come out everywhere. FORMAT.md, section 3, is the specification.

Shapes: B views (one per sample), 4 = top, left, height, width; 6 = a 2×3 affine matrix.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools import exact, rng
from cache_tools.spec import ViewSpec

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U8 = NDArray[np.uint64]
F8 = NDArray[np.float64]

CROP_TRIES = 10
LAM_ONE = 65_536
"""λ is stored as an integer of 1/65536: products with uint8 pixels are then exact in fp32."""


@dataclass(frozen=True)
class Views:
    """Parameters of one view of each of B samples, before mixing."""

    box_B4: I4
    """Crop: top, left, height, width in pixels of the picture."""
    flip_B: NDArray[np.bool_]
    """Whether the resized crop is flipped horizontally."""
    affine_B6: I8 | None
    """Output pixel (x, y) to source pixel, in 1/65536; None when the spec has no affine."""


def draw(spec: ViewSpec, ids_B: U8, height_B: I4, width_B: I4, view: int) -> Views:
    """Draw view number `view` of B samples.

    Args:
        spec: The augmentation.
        ids_B: Sample ids.
        height_B: Heights of the pictures in pixels.
        width_B: Widths of the pictures in pixels.
        view: View number.
    """
    flip = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_FLIP, 1))[:, 0] < spec.hflip
    affine = _affine(spec, ids_B, view) if spec.affine else None
    return Views(_crop(spec, ids_B, height_B, width_B, view), flip, affine)


def mix(spec: ViewSpec, ids_W: U8, view: int) -> tuple[I8, I4]:
    """Mixup partners of one window of the sample table.

    A keyed permutation of the window pairs its samples: neighbours in it are partners, and each
    mixes the other into itself with the same λ. The last of an odd number stays alone. Only the
    window and the view number enter: no batch size, order or worker count can change it.

    Args:
        spec: The augmentation; `spec.mixup` > 0.
        ids_W: Sample ids of the whole window, in the table's order.
        view: View number.

    Returns:
        partner_W, positions within the window (a sample alone is its own partner), and lam_W, the
        weight of the sample itself in 1/65536.
    """
    order = np.argsort(rng.bits(spec.seed, ids_W, view, rng.STREAM_PAIR, 1)[:, 0], kind="stable")
    pairs = order[: len(order) // 2 * 2].reshape(-1, 2)
    partner = np.arange(len(ids_W))
    partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    lam = np.full(len(ids_W), LAM_ONE, dtype=np.int32)
    lam_pair = _beta(spec.mixup, rng.bits(spec.seed, ids_W[pairs[:, 0]], view, rng.STREAM_MIX, 3))
    lam[pairs[:, 0]] = lam[pairs[:, 1]] = lam_pair
    return partner, lam


def center(height: int, width: int, crop: float) -> tuple[int, int, int, int]:
    """The box of timm's evaluation: shorter side resized to size/crop, then a centre crop.

    Returns:
        top, left, height, width of the square in the original picture, in pixels.
    """
    side = min(height, width, max(1, round(min(height, width) * crop)))
    return (height - side) // 2, (width - side) // 2, side, side


def _crop(spec: ViewSpec, ids_B: U8, height_B: I4, width_B: I4, view: int) -> I4:
    """Random resized crop: up to ten tries, then the largest centred box of an allowed ratio."""
    box = _fallback(spec, height_B, width_B)
    todo = np.arange(len(ids_B))
    for attempt in range(CROP_TRIES):
        bits = rng.bits(spec.seed, ids_B[todo], view, rng.STREAM_CROP, 4 * attempt + 4)[:, -4:]
        u = rng.uniform(bits)
        height, width = height_B[todo].astype(np.float64), width_B[todo].astype(np.float64)
        area = (spec.scale[0] + u[:, 0] * (spec.scale[1] - spec.scale[0])) * (height * width)
        low, high = exact.log(np.array(spec.ratio))
        ratio = exact.exp(low + u[:, 1] * (high - low))
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
        top, left = np.floor(u[:, 2] * (height - h + 1)), np.floor(u[:, 3] * (width - w + 1))
        box[todo[fits]] = np.stack([top, left, h, w], axis=-1)[fits].astype(np.int32)
        todo = todo[~fits]
        if len(todo) == 0:
            break
    return box


def _fallback(spec: ViewSpec, height_B: I4, width_B: I4) -> I4:
    height, width = height_B.astype(np.float64), width_B.astype(np.float64)
    narrow = np.maximum(1.0, np.minimum(height, np.rint(width / spec.ratio[0])))
    wide = np.maximum(1.0, np.minimum(width, np.rint(height * spec.ratio[1])))
    h = np.where(width < spec.ratio[0] * height, narrow, height)
    w = np.where(width > spec.ratio[1] * height, wide, width)
    top, left = np.floor((height - h) / 2.0), np.floor((width - w) / 2.0)
    return np.stack([top, left, h, w], axis=-1).astype(np.int32)


def _affine(spec: ViewSpec, ids_B: U8, view: int) -> I8:
    """Rotation about the centre, then a shift, as integers of 1/65536 pixel."""
    u = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_AFFINE, 3)) * 2.0 - 1.0
    turns = u[:, 0] * spec.degrees / 360.0
    cosine, sine = exact.cos_turns(turns), exact.sin_turns(turns)
    shift = u[:, 1:] * (spec.translate * spec.size)
    middle = (spec.size - 1) / 2.0
    x0 = middle - cosine * middle + sine * middle + shift[:, 0]
    y0 = middle - sine * middle - cosine * middle + shift[:, 1]
    matrix = np.stack([cosine, -sine, x0, sine, cosine, y0], axis=-1)
    return np.rint(matrix * 65536.0).astype(np.int64)


def _beta(alpha: float, bits_P3: U8) -> I4:
    """λ ~ Beta(α, α) in 1/65536, without rejection (Ulrich, 1984; Devroye, 1986, p. 437)."""
    u = rng.uniform(bits_P3)
    cosine = exact.cos_turns(u[:, 1])
    power = np.minimum(exact.log(1.0 - u[:, 0]) * (-1.0 / alpha), 600.0)
    q = (exact.exp(power) - 1.0) * cosine * cosine
    half = 0.5 * np.sqrt(1.0 / (1.0 + 1.0 / np.maximum(q, 1e-300)))
    lam = np.where(u[:, 2] < 0.5, 0.5 - half, 0.5 + half)
    return np.asarray(np.rint(lam * LAM_ONE), dtype=np.int32)
