"""Blur and sharpness of uint8 pixels.

Integer arithmetic only, so that a pixel is the same on every processor. They mean what Pillow's
`GaussianBlur` and `Sharpness` mean: within 1 of 255 of it. (A blur by 1/2 or 3/4 pixel has ties
that the last bit of Pillow's floats decides: there about 1 value of a photograph in 7000 is 2 off.)

Shapes: H, W, 3 = rows, columns, RGB; contiguous.
"""

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics.array_types import U1, U2
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_word = np.uint32  # Numba adds in 64 bits, unless the result is made a word


@njit(nogil=True, cache=True, error_model="numpy")
def sharpness(source: U1, factor: int, out: U1) -> int:
    """Blend from the smoothed picture, whose border is the picture's own.

    Args:
        source: [H, W, 3] pixels.
        factor: In 1/65536; at 65536 nothing changes.
        out: [H, W, 3], written.
    """
    lines, result = source.reshape(source.shape[0], -1), out.reshape(out.shape[0], -1)
    threes = np.empty(lines.shape[1], np.uint16)
    for y in range(lines.shape[0]):
        for i in range(lines.shape[1]):
            result[y, i] = lines[y, i]
        if 0 < y < lines.shape[0] - 1 and source.shape[1] > 2:
            _three(lines[y - 1], lines[y], lines[y + 1], threes)
            _sharpen(threes, lines[y, 3:-3], np.int32(factor), result[y, 3:-3])
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def _three(above: U1, line: U1, below: U1, sums: U2) -> None:
    """Sum three rows."""
    for i in range(sums.size):
        sums[i] = _word(above[i]) + _word(line[i]) + _word(below[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _sharpen(threes: U2, line: U1, factor: np.int32, result: U1) -> None:
    """Blend a row's pixels, but the first and last, from smoothed ones; `threes` of all of them."""
    count, half, most = line.size, np.int32(16), np.int32(255)
    left, right = threes[:count], threes[6:][:count]
    middle = threes[3:][:count]
    for i in range(count):
        nine = _word(left[i]) + _word(middle[i]) + _word(right[i])
        value = np.int32(line[i])
        smooth = np.int32(_word(2 * (nine + 4 * _word(line[i])) + 13) // _word(26))
        change = np.int32(np.int32(value - smooth) * factor) >> half
        result[i] = np.uint8(min(max(np.int32(smooth + change), np.int32(0)), most))


@njit(nogil=True, cache=True, error_model="numpy")
def blur(image: U1, radius: int, scratch: U1) -> int:
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
        return OK
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
    return OK


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
    """Take the sums' upper eight bits."""
    for i in range(sums.size):
        line[i] = sums[i] >> 24
