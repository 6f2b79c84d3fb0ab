"""Operations on uint8 pixels that look at a pixel's neighbours: affine map, blur, sharpness.

Integer arithmetic only, so that a pixel is the same on every processor. They mean what Pillow's
`Image.transform`, `GaussianBlur` and `Sharpness` mean, rounding towards zero where Pillow does:
within 1 of 255 of it. (A blur by 1/2 or 3/4 pixel has ties that the last bit of Pillow's floats
decides: there about 1 value of a photograph in 7000 is 2 off.) A bilinear map has Pillow's very
bits when Pillow is given the same matrix.

Shapes: H, W, 3 = rows, columns, RGB; contiguous.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]


@njit(nogil=True, cache=True, error_model="numpy")
def affine(source: U1, matrix: I8, fill: U1, out: U1, bicubic: bool) -> None:
    """Map every output pixel through a 2×3 matrix and sample the source there.

    A point outside the source's area, x < -1/2 or x ≥ W - 1/2 and so with y, has the fill colour;
    for one inside, the border's pixels stand for neighbours beyond it.

    Args:
        source: [H, W, 3] pixels.
        matrix: Output (x, y) to source (x, y), row by row, in 1/65536 pixel; pixel centres lie on
            integers.
        fill: [3], the colour outside of the source.
        out: [H, W, 3], written.
        bicubic: Sample bicubically (Pillow's, a = -1), not bilinearly.
    """
    weights = np.empty((2, 4), np.int64)
    for y in range(out.shape[0]):
        first, last = _shifted(source, matrix, y, bicubic, weights[0], out[y])
        _mapped(source, matrix, y, 0, first, fill, bicubic, weights, out[y])
        _mapped(source, matrix, y, last, out.shape[1], fill, bicubic, weights, out[y])


@njit(nogil=True, cache=True, error_model="numpy")
def _shifted(
    source: U1, matrix: I8, y: int, bicubic: bool, weights: I8, line: U1
) -> tuple[int, int]:
    """Make what of a row is a shift along one axis, and return where that begins and ends.

    A shift or a horizontal shear moves all pixels of a row alike: the weights are the row's, and
    the sums run along memory. What is left, at the ends or all of it, is `_mapped`'s.
    """
    height, width = source.shape[0], source.shape[1]
    sx, sy = matrix[1] * y + matrix[2], matrix[4] * y + matrix[5]
    fx, fy, left, top = sx & 65535, sy & 65535, sx >> 16, sy >> 16
    straight = matrix[0] == 65536 and matrix[3] == 0 and (fx == 0 or fy == 0)
    if not straight or top < (1 if fy else 0) or top > height - (3 if fy else 1):
        return 0, 0
    first = max(0, 1 - left)
    count = min(line.shape[0], width - 2 - left) - first
    if count <= 0:
        return 0, 0
    step = 3 * width if fy else 3
    if bicubic:
        _cubic_weights(fy if fy else fx, weights)
    else:
        part = fy if fy else fx
        weights[0], weights[1], weights[2], weights[3] = 0, (65536 - part) << 4, part << 4, 0
    flat = source.reshape(-1)
    at = 3 * (top * width + left + first)
    if not fx and not fy:
        line.reshape(-1)[3 * first : 3 * (first + count)] = flat[at : at + 3 * count]
    else:
        _four_taps(flat, at, step, weights, line.reshape(-1)[3 * first : 3 * (first + count)])
    return first, first + count


@njit(nogil=True, cache=True, error_model="numpy")
def _four_taps(flat: U1, at: int, step: int, weights: I8, line: U1) -> None:
    """Weighted sums of four neighbours `step` apart, weights in 1/2^20, for values side by side."""
    count = line.size
    a, b = flat[at - step : at - step + count], flat[at : at + count]
    c = flat[at + step : at + step + count]
    d = flat[at + 2 * step : at + 2 * step + count]
    w0, w1 = np.int32(weights[0]), np.int32(weights[1])
    w2, w3 = np.int32(weights[2]), np.int32(weights[3])
    for i in range(count):
        value: Any = (
            w0 * np.int32(a[i]) + w1 * np.int32(b[i]) + w2 * np.int32(c[i]) + w3 * np.int32(d[i])
        )
        line[i] = min(max(value >> 20, 0), 255)


@njit(nogil=True, cache=True, error_model="numpy")
def _mapped(
    source: U1,
    matrix: I8,
    y: int,
    begin: int,
    end: int,
    fill: U1,
    bicubic: bool,
    weights: I8,
    line: U1,
) -> None:
    """Make columns `begin` to `end` of one row, pixel by pixel."""
    right, bottom = source.shape[1] * 65536 - 32768, source.shape[0] * 65536 - 32768
    for x in range(begin, end):
        sx = matrix[0] * x + matrix[1] * y + matrix[2]
        sy = matrix[3] * x + matrix[4] * y + matrix[5]
        if sx < -32768 or sx >= right or sy < -32768 or sy >= bottom:
            line[x, 0], line[x, 1], line[x, 2] = fill[0], fill[1], fill[2]
        elif bicubic:
            _bicubic(source, sx, sy, weights, line[x])
        else:
            _bilinear(source, sx, sy, line[x])


@njit(nogil=True, cache=True, error_model="numpy")
def _bilinear(source: U1, sx: int, sy: int, pixel: U1) -> None:
    """Sample at (sx, sy), in 1/65536 pixel, exactly, then round towards zero."""
    fx, fy = sx & 65535, sy & 65535
    left, right = max(sx >> 16, 0), min((sx >> 16) + 1, source.shape[1] - 1)
    top, bottom = max(sy >> 16, 0), min((sy >> 16) + 1, source.shape[0] - 1)
    for c in range(3):
        upper = source[top, left, c] * (65536 - fx) + source[top, right, c] * fx
        lower = source[bottom, left, c] * (65536 - fx) + source[bottom, right, c] * fx
        pixel[c] = (upper * (65536 - fy) + lower * fy) >> 32


@njit(nogil=True, cache=True, error_model="numpy")
def _cubic_weights(fraction: int, weights: I8) -> None:
    """Weights of four neighbours in 1/2^20, summing to 1: one colour then stays that colour."""
    one, two = fraction << 32, fraction * fraction << 16
    three, half = fraction * fraction * fraction, 1 << 27
    weights[0] = (-one + 2 * two - three + half) >> 28
    weights[2] = (one + two - three + half) >> 28
    weights[3] = (-two + three + half) >> 28
    weights[1] = (1 << 20) - weights[0] - weights[2] - weights[3]


@njit(nogil=True, cache=True, error_model="numpy")
def _bicubic(source: U1, sx: int, sy: int, weights: I8, pixel: U1) -> None:
    """Sample at (sx, sy), in 1/65536 pixel; `weights` [2, 4] is room for them."""
    _cubic_weights(sx & 65535, weights[0])
    _cubic_weights(sy & 65535, weights[1])
    left, top = (sx >> 16) - 1, (sy >> 16) - 1
    last_row, last_column = source.shape[0] - 1, source.shape[1] - 1
    red, green, blue = 0, 0, 0
    # a shear or shift along one axis needs one row or column: the other three weigh nothing
    rows = range(4) if sy & 65535 else range(1, 2)
    columns = range(4) if sx & 65535 else range(1, 2)
    for dy in rows:
        row = source[min(max(top + dy, 0), last_row)]
        r, g, b = 0, 0, 0
        for dx in columns:
            column, weight = min(max(left + dx, 0), last_column), weights[0, dx]
            r += weight * row[column, 0]
            g += weight * row[column, 1]
            b += weight * row[column, 2]
        red += weights[1, dy] * r
        green += weights[1, dy] * g
        blue += weights[1, dy] * b
    pixel[0] = min(max(red >> 40, 0), 255)
    pixel[1] = min(max(green >> 40, 0), 255)
    pixel[2] = min(max(blue >> 40, 0), 255)


@njit(nogil=True, cache=True, error_model="numpy")
def sharpness(source: U1, factor: int, out: U1) -> None:
    """Blend from the smoothed picture, whose border is the picture's own.

    Args:
        source: [H, W, 3] pixels.
        factor: In 1/65536; at 65536 nothing changes.
        out: [H, W, 3], written.
    """
    height, width = source.shape[0], source.shape[1] * 3
    flat, result = source.reshape((height, width)), out.reshape((height, width))
    for y in range(height):
        for i in range(width):
            if y in (0, height - 1) or i < 3 or i >= width - 3:
                result[y, i] = flat[y, i]
                continue
            total = 4 * np.int32(flat[y, i])
            for dy in range(-1, 2):
                row = y + dy
                total += np.int32(flat[row, i - 3]) + flat[row, i] + flat[row, i + 3]
            smooth = (2 * total + 13) // 26
            value = (smooth * 65536 + (flat[y, i] - smooth) * factor) >> 16
            result[y, i] = min(max(value, 0), 255)


@njit(nogil=True, cache=True, error_model="numpy")
def blur(image: U1, radius: int, scratch: U1) -> None:
    """Blur in place by three box filters along each axis, as Pillow's GaussianBlur does.

    The box (Gwosdek et al., SSVM 2011) has 2n + 1 whole pixels and a share of one more at each end.
    From the paper's length for a variance of radius²/3 follows, with N = n + 1, the weight of a
    whole pixel: (3N² - radius²) / (N (2N - 1) (2N + 1)).

    Args:
        image: [H, W, 3] pixels, replaced.
        radius: Standard deviation in 1/65536 pixel, up to 16 pixels; 0 changes nothing.
        scratch: [H, W, 3], overwritten.
    """
    if radius <= 0:
        return
    reach = 1
    while reach * (reach + 1) << 32 <= radius * radius:
        reach += 1
    # Pillow's quotient is a float of 24 bits: above one half it is rounded, below it is cut
    divisor = reach * (4 * reach * reach - 1) << 8
    whole = (3 * reach * reach << 32) - radius * radius
    whole = (whole + divisor // 2 if 2 * whole >= divisor << 24 else whole) // divisor
    part = ((1 << 24) - (2 * reach - 1) * whole) // 2
    _box_rows(image, reach, whole, part, scratch)
    _box_rows(scratch, reach, whole, part, image)
    _box_rows(image, reach, whole, part, scratch)
    _box_columns(scratch, reach, whole, part, image)
    _box_columns(image, reach, whole, part, scratch)
    _box_columns(scratch, reach, whole, part, image)


@njit(nogil=True, cache=True, error_model="numpy")
def _box_rows(source: U1, reach: int, whole: int, part: int, out: U1) -> None:
    """Filter along rows; the two pixels at distance `reach` weigh `part`/2^24, others `whole`."""
    width = source.shape[1]
    padded = np.empty((width + 2 * reach, 3), np.uint8)
    line, sums = padded.reshape(-1), np.empty(width * 3, np.uint32)
    for y in range(source.shape[0]):
        for x in range(width + 2 * reach):
            column = min(max(x - reach, 0), width - 1)
            for c in range(3):
                padded[x, c] = source[y, column, c]
        sums.fill(1 << 23)
        for tap in range(2 * reach + 1):
            weight = np.uint32(part if tap in (0, 2 * reach) else whole)
            _add(line[3 * tap : 3 * (tap + width)], weight, sums)
        _save(sums, out[y].reshape(-1))


@njit(nogil=True, cache=True, error_model="numpy")
def _box_columns(source: U1, reach: int, whole: int, part: int, out: U1) -> None:
    """Filter along columns; as `_box_rows`."""
    sums = np.empty(source.shape[1] * 3, np.uint32)
    for y in range(source.shape[0]):
        sums.fill(1 << 23)
        for tap in range(-reach, reach + 1):
            weight = np.uint32(part if tap in (-reach, reach) else whole)
            row = min(max(y + tap, 0), source.shape[0] - 1)
            _add(source[row].reshape(-1), weight, sums)
        _save(sums, out[y].reshape(-1))


@njit(nogil=True, cache=True, error_model="numpy")
def _add(line: U1, weight: np.uint32, sums: NDArray[np.uint32]) -> None:
    """Add a line of values times a weight to the sums."""
    for i in range(sums.size):
        sums[i] += weight * line[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _save(sums: NDArray[np.uint32], line: U1) -> None:
    """The sums' upper eight bits."""
    for i in range(sums.size):
        line[i] = sums[i] >> 24
