"""Draw the parameters of views: box, flip, operations, erased boxes, partner.

Parameters are sizes and numbers, never pixels: they can be printed, compared and checked without an
image, and a whole block's are one vectorised call. Distributions are timm's; the arithmetic uses
`exact`, so that the same bits come out everywhere. FORMAT.md, section 3, is the specification.

Shapes: B views (one per sample), 4 = top, left, height, width; L operations with 6 arguments;
E erased boxes; W samples of a window; P pairs.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import exact, rng
from cache_tools.numerics.array_types import F8, I1, I4, I8, U8
from cache_tools.spec.randaugment import parse
from cache_tools.spec.views import ViewSpec
from cache_tools.views import ops, randaugment

CROP_TRIES = ERASE_TRIES = 10
LAMBDA_SCALE = 65_536
"""λ is stored as an integer of 1/65536: products with uint8 pixels are then exact in fp32."""
AREA, BILINEAR, BICUBIC, BOX, AREA_1, BOX_1 = range(6)
"""Resampling of a crop; AREA_1 and BOX_1 are those of the renderer "kernels-1"."""
_KERNELS_1 = np.array([AREA_1, BILINEAR, BICUBIC, BOX_1], dtype=np.int8)
_ERASE_AREA, _ERASE_RATIO = (0.02, 1.0 / 3.0), (0.3, 1.0 / 0.3)
_ERASE_DRAWS = 52  # per box: ten tries of four, six of the colour, two of the pixels, four spare
_NOISE = 58.0  # deviation of erased pixels, that of ImageNet's


@dataclass(frozen=True)
class ViewParams:
    """Parameters of one view of each of B samples, before mixing."""

    box_B4: I4
    """Crop: top, left, height, width in pixels of the picture."""
    filter_B: I1
    """Resampling of the crop: AREA, BILINEAR, BICUBIC, BOX, AREA_1 or BOX_1."""
    flip_B: NDArray[np.bool_]
    """True if the resized crop is flipped horizontally."""
    codes_BL: I1
    """Operations in their order, numbered as in `ops`."""
    arguments_BL6: I4
    """Their arguments."""
    erase_BE8: I4
    """Erased boxes: top, left, height (0 = none), width, whether every pixel is drawn, R, G, B."""
    noise_BE2: U8
    """Keys of the erased boxes' pixels."""

    def __len__(self) -> int:
        return len(self.flip_B)

    def of_renderer(self, renderer: str) -> "ViewParams":
        """Return the same views with the filters of a cache's renderer (FORMAT.md, 3.4)."""
        old = renderer == "kernels-1"
        return replace(self, filter_B=_KERNELS_1[self.filter_B]) if old else self


def draw(
    spec: ViewSpec,
    ids_B: U8,
    height_B: I4,
    width_B: I4,
    view: int,
    erase_ids_B: U8 | None = None,
) -> ViewParams:
    """Draw view number `view` of B samples, by their ids and the pictures' sizes in pixels.

    Where views are mixed, erasing is drawn by `erase_ids_B`, one id for both partners. With the
    same boxes, colours and noise in both, the mixed view is the one that is erased after mixing.
    """
    if spec.center_crop:
        sides = zip(height_B.tolist(), width_B.tolist(), strict=True)
        boxes = [center(h, w, spec.center_crop) for h, w in sides]
        box = np.array(boxes, dtype=np.int32).reshape(-1, 4)
    else:
        box = _crop(spec, ids_B, height_B, width_B, view)
    if spec.interpolation == "random":
        u = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_FILTER, 1))[:, 0]
        filters = np.where(u < 0.5, BILINEAR, BICUBIC).astype(np.int8)
    else:
        filters = np.full(len(ids_B), filter_number(spec.interpolation), dtype=np.int8)
    flip = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_FLIP, 1))[:, 0] < spec.hflip
    codes, arguments = _operations(spec, ids_B, view)
    erase, noise = _erase(spec, ids_B if erase_ids_B is None else erase_ids_B, view)
    return ViewParams(box, filters, flip, codes, arguments, erase, noise)


@dataclass(frozen=True)
class MixParams:
    """Mixing of B views with their partners."""

    partner_B: I8
    """Position of the partner; a sample that stays alone is its own."""
    lam_B: I4
    """Share of the sample itself in 1/65536: what labels are mixed with."""
    cut_B4: I4
    """Cutmix: top, left, height, width of the box taken from the partner; height 0 = mixup."""
    outside_B: I4 | None = None
    """Share of the own pixels outside of that box in 1/65536; None: λ without a box, else 1. Only
    imported views may have both a box and mixup."""

    def rows(self, row_R: I8) -> "MixParams":
        """Select the mixing of some views."""
        outside = None if self.outside_B is None else self.outside_B[row_R]
        return MixParams(self.partner_B[row_R], self.lam_B[row_R], self.cut_B4[row_R], outside)


def mix(spec: ViewSpec, ids_W: U8, view: int) -> MixParams:
    """Draw how one window of the sample table is mixed.

    A keyed permutation of the window pairs its samples: neighbours in it are partners, and each
    mixes the other into itself with the same λ and box. The last of an odd number stays alone. Only
    the window, its ids in the table's order, and the view number enter: no batch size, order or
    worker count can change it. The pairs (not λ and box) are the same in `pair_views` consecutive
    views.
    """
    count = len(ids_W)
    partner, lam = np.arange(count), np.full(count, LAMBDA_SCALE, dtype=np.int32)
    cut = np.zeros((count, 4), dtype=np.int32)
    if spec.mixes:
        turn = view // spec.pair_views
        keys = rng.bits(spec.seed, ids_W, turn, rng.STREAM_PAIR, 1)[:, 0]
        order = np.argsort(keys, kind="stable")
        a, b = order[: count // 2 * 2].reshape(-1, 2).T
        partner[a], partner[b] = b, a
        lam_P, cut_P4 = _pairs(spec, ids_W[a], view)
        for side in (a, b):
            lam[side], cut[side] = lam_P, cut_P4
    return MixParams(partner, lam, cut)


def center(height: int, width: int, crop: float) -> tuple[int, int, int, int]:
    """Compute the box of timm's evaluation: shorter side resized to size/crop, then a centre crop.

    Returns:
        top, left, height, width of the square in the original picture, in pixels.
    """
    side = max(1, round(min(height, width) * crop))
    return (height - side) // 2, (width - side) // 2, side, side


def _crop(spec: ViewSpec, ids_B: U8, height_B: I4, width_B: I4, view: int) -> I4:
    """Draw a random resized crop: ten tries, then the largest centred box of a valid ratio."""
    box = _fallback(spec, height_B, width_B)
    todo = np.arange(len(ids_B))
    low, high = exact.log(np.array(spec.ratio))
    for attempt in range(CROP_TRIES):
        bits = rng.bits(spec.seed, ids_B[todo], view, rng.STREAM_CROP, 4, 4 * attempt)
        u = rng.uniform(bits)
        height, width = height_B[todo].astype(np.float64), width_B[todo].astype(np.float64)
        area = (spec.scale[0] + u[:, 0] * (spec.scale[1] - spec.scale[0])) * (height * width)
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


def filter_number(interpolation: str) -> int:
    """Return the number of a resampling that is the same for all views."""
    return {"area": AREA, "bilinear": BILINEAR, "bicubic": BICUBIC, "box": BOX}[interpolation]


def _operations(spec: ViewSpec, ids_B: U8, view: int) -> tuple[I1, I4]:
    """Draw rotation and shift, RandAugment, 3-Augment and colour jitter, in this order."""
    drawn: list[tuple[I1, I4]] = []
    if spec.affine:
        drawn.append(_affine(spec, ids_B, view))
    if spec.auto_augment:
        config = parse(spec.auto_augment)
        drawn.append(
            randaugment.draw(config, spec.seed, ids_B, view, spec.size, spec.op_interpolation)
        )
    if spec.three_augment:
        drawn.append(_three(spec, ids_B, view))
    if any(spec.color_jitter):
        drawn.append(_jitter(spec, ids_B, view))
    codes = [codes for codes, _ in drawn] or [np.zeros((len(ids_B), 0), dtype=np.int8)]
    arguments = [values for _, values in drawn] or [np.zeros((len(ids_B), 0, 6), dtype=np.int32)]
    return np.concatenate(codes, axis=1), np.concatenate(arguments, axis=1)


def _affine(spec: ViewSpec, ids_B: U8, view: int) -> tuple[I1, I4]:
    """Draw a rotation about the centre, then a shift."""
    u = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_AFFINE, 3)) * 2.0 - 1.0
    matrix = randaugment.rotation(u[:, 0] * spec.degrees / 360.0, spec.size)
    matrix[:, [2, 5]] += u[:, 1:] * (spec.translate * spec.size)
    special = {"bicubic": ops.AFFINE_BICUBIC, "nearest": ops.AFFINE_NEAREST}
    code = special.get(spec.op_interpolation, ops.AFFINE_BILINEAR)
    codes = np.full((len(ids_B), 1), code, dtype=np.int8)
    return codes, np.rint(matrix * 65536.0).astype(np.int32)[:, None]


def _three(spec: ViewSpec, ids_B: U8, view: int) -> tuple[I1, I4]:
    """Draw one of grayscale, solarize at 128, Gaussian blur of radius 0.1..2."""
    u = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_THREE, 2))
    choices = np.array([ops.GRAYSCALE, ops.SOLARIZE, ops.BLUR], dtype=np.int8)
    codes = choices[np.floor(u[:, 0] * 3.0).astype(np.int64)]
    radius = np.rint((0.1 + u[:, 1] * 1.9) * 65536.0)
    arguments = np.zeros((len(ids_B), 1, 6), dtype=np.int32)
    arguments[:, 0, 0] = np.where(
        codes == ops.BLUR, radius, np.where(codes == ops.SOLARIZE, 128, 0)
    )
    return codes[:, None], arguments


def _jitter(spec: ViewSpec, ids_B: U8, view: int) -> tuple[I1, I4]:
    """Draw brightness, contrast, saturation and hue in a random order."""
    bits = rng.bits(spec.seed, ids_B, view, rng.STREAM_JITTER, 8)
    order = np.argsort(bits[:, 4:], axis=1, kind="stable")
    u = rng.uniform(bits[:, :4]) * 2.0 - 1.0
    strength = np.array(spec.color_jitter)
    values = np.rint((1.0 + u * strength) * 65536.0)
    values[:, 3] = np.trunc(u[:, 3] * strength[3] * 255.0) % 256.0
    numbers = (ops.BRIGHTNESS, ops.CONTRAST, ops.COLOR, ops.HUE)
    codes = np.where(strength > 0, np.array(numbers, dtype=np.int8), ops.NOTHING).astype(np.int8)
    arguments = np.zeros((len(ids_B), 4, 6), dtype=np.int32)
    arguments[:, :, 0] = np.take_along_axis(values, order, axis=1)
    return codes[order], arguments


def _erase(spec: ViewSpec, ids_B: U8, view: int) -> tuple[I4, U8]:
    """Draw random erasing: boxes of 2..33 % of the area, shared among their number."""
    boxes = spec.re_count if spec.re_prob else 0
    erase = np.zeros((len(ids_B), boxes, 8), dtype=np.int32)
    noise = np.zeros((len(ids_B), boxes, 2), dtype=np.uint64)
    if not boxes:
        return erase, noise
    first = rng.uniform(rng.bits(spec.seed, ids_B, view, rng.STREAM_ERASE, 2))
    rows = np.flatnonzero(first[:, 0] < spec.re_prob)
    count = 1.0 + np.floor(first[rows, 1] * boxes)
    bits = rng.bits(spec.seed, ids_B[rows], view, rng.STREAM_ERASE, 4 + _ERASE_DRAWS * boxes)
    for k in range(boxes):
        of_box = bits[:, 4 + _ERASE_DRAWS * k :][:, :_ERASE_DRAWS]
        box = _erase_box(rng.uniform(of_box[:, :40]), count, spec.size)
        box[count <= k] = 0
        erase[rows, k, :4] = box
        erase[rows, k, 4] = spec.re_mode == "pixel"
        color = np.tile(np.array(spec.fill, dtype=np.float64), (len(rows), 1))
        if spec.re_mode == "rand":
            u = rng.uniform(of_box[:, 40:46])
            color += np.rint(_NOISE * exact.normal(u[:, :3], u[:, 3:]))
        erase[rows, k, 5:] = np.clip(color, 0.0, 255.0).astype(np.int32)
        noise[rows, k] = of_box[:, 46:48]
    return erase, noise


def _erase_box(u_B40: F8, count_B: F8, size: int) -> I4:
    """Draw the first of ten boxes that is smaller than the view; height 0 if none is."""
    box = np.zeros((len(u_B40), 4), dtype=np.int32)
    open_ = np.ones(len(u_B40), dtype=np.bool_)
    low, high = exact.log(np.array(_ERASE_RATIO))
    for attempt in range(ERASE_TRIES):
        u = u_B40[:, 4 * attempt : 4 * attempt + 4]
        area = (_ERASE_AREA[0] + u[:, 0] * (_ERASE_AREA[1] - _ERASE_AREA[0])) * size * size
        ratio = exact.exp(low + u[:, 1] * (high - low))
        h = np.rint(np.sqrt(area / count_B * ratio))
        w = np.rint(np.sqrt(area / count_B / ratio))
        fits = open_ & (w < size) & (h < size)
        top, left = np.floor(u[:, 2] * (size - h + 1)), np.floor(u[:, 3] * (size - w + 1))
        box[fits] = np.stack([top, left, h, w], axis=-1)[fits].astype(np.int32)
        open_ &= ~fits
    return box


def _pairs(spec: ViewSpec, ids_P: U8, view: int) -> tuple[I4, I4]:
    """Draw λ and cutmix box of pairs by the id of each pair's first."""
    bits = rng.bits(spec.seed, ids_P, view, rng.STREAM_MIX, 4)
    u = rng.uniform(rng.bits(spec.seed, ids_P, view, rng.STREAM_CUT, 4))
    if spec.mixup and spec.cutmix:
        is_cut = u[:, 1] < spec.mixup_switch_prob
    else:
        is_cut = np.full(len(ids_P), spec.cutmix > 0)
    alpha = np.where(is_cut, spec.cutmix or 1.0, spec.mixup or 1.0)
    lam = _beta(alpha, bits)
    lam[u[:, 0] >= spec.mixup_prob] = 1.0
    box = _cut_box(lam, u[:, 2], u[:, 3], spec.size)
    box[~is_cut] = 0
    kept = 1.0 - box[:, 2] * box[:, 3] / float(spec.size * spec.size)
    return np.rint(np.where(is_cut, kept, lam) * LAMBDA_SCALE).astype(np.int32), box


def _cut_box(lam_P: F8, u_P: F8, v_P: F8, size: int) -> I4:
    """Place a square of 1 - λ of the area about a random point, clipped by the border."""
    side = np.floor(size * np.sqrt(1.0 - lam_P))
    edges = []
    for u in (u_P, v_P):
        middle = np.floor(u * size)
        low = np.clip(middle - np.floor(side / 2.0), 0, size)
        high = np.clip(middle + np.floor((side + 1.0) / 2.0), 0, size)
        edges.append((low, high - low))
    (top, height), (left, width) = edges
    empty = (height == 0) | (width == 0)
    box = np.stack([top, left, height, width], axis=-1).astype(np.int32)
    box[empty] = 0
    return box


def _beta(alpha_P: F8, bits_P: U8) -> F8:
    """Draw λ ~ Beta(α, α) without rejection (Ulrich, 1984; Devroye, 1986, p. 437)."""
    u = rng.uniform(bits_P)
    cosine = exact.cos_turns(u[:, 1])
    power = np.minimum(exact.log(1.0 - u[:, 0]) * (-1.0 / alpha_P), 600.0)
    q = (exact.exp(power) - 1.0) * cosine * cosine
    half = 0.5 * np.sqrt(1.0 / (1.0 + 1.0 / np.maximum(q, 1e-300)))
    return np.where(u[:, 2] < 0.5, 0.5 - half, 0.5 + half)
