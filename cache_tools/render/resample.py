"""Resize in integers: the mean over the area of an output pixel, or linear where an axis grows.

OpenCV's INTER_AREA computes the same mean in floats, one column after another. Here sixteen rows of
the result are made side by side, so that the vector unit does the work (`vectors`): several times
as fast, and within 1 of 255 of it. INTER_AREA is nearly the nearest pixel on an axis that grows,
hence linear interpolation there. Weights are in 1/2^14 and add up exactly, so one colour stays that
colour.

Shapes: H, W, 3 = rows, columns, RGB of the source; S = height and width of the result.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics.array_types import I2, I4, I8, U1, U4
from cache_tools.render import vectors
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_LANES, _COLUMNS, _ONE = vectors.LANES, vectors.COLUMNS, vectors.ONE
_NARROWEST = 6
"""Columns of the narrowest box whose rows have a value for each lane of a vector."""


@njit(nogil=True, cache=True, error_model="numpy")
def crop(picture: U1, top: int, left: int, height: int, width: int, flip: bool, out: U1) -> int:
    """Cut a box (in pixels) out of a contiguous picture, [H, W, 3], and resize it to [S, S, 3].

    Flipped horizontally, columns of the result have the taps of those of the other end.
    """
    size = out.shape[0]
    row_of, row_weights = _grouped(*taps(height, size), _LANES, False)
    column_of, column_weights = _grouped(*taps(width, size), _COLUMNS, flip)
    pixels, pitch, result = picture.reshape(-1), 3 * picture.shape[1], out.reshape(size, -1)
    if width < _NARROWEST:
        pixels, pitch = _widened(picture, top, left, height, width), 3 * _NARROWEST
        top, left = 0, 0
    begin = (top + row_of) * np.int64(pitch) + 3 * left
    step = np.int64(pitch if height > 1 else 0)  # a second tap, without weight, is in the picture
    values = np.int64(3 * max(width, _NARROWEST))
    means, blocks = np.empty((values, _LANES), np.int16), -(-3 * column_of.size // (4 * _LANES))
    words = np.zeros((blocks, _LANES, _LANES), np.uint32)
    lines = np.empty((_LANES, 4 * _LANES * blocks), np.uint8)
    for first in range(0, size, _LANES):
        _rows(pixels, begin[first:], step, row_weights[first // _LANES], means)
        _columns(means, column_of, column_weights, words)
        _transpose(words, lines)
        for y in range(first, min(first + _LANES, size)):
            for i in range(result.shape[1]):
                result[y, i] = lines[y - first, i]
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def taps(length: int, size: int) -> tuple[I4, I4]:
    """First source pixel [S] and weights in 1/2^14 [S, taps] of each output pixel of one axis."""
    if length < size:
        return _linear_taps(length, size)
    count = min(length // size + 2, length)
    first = np.empty(size, np.int32)
    weights = np.zeros((size, count), np.int32)
    for i in range(size):
        # output pixel i covers [i·length, (i + 1)·length), source pixel k [k·size, (k + 1)·size)
        begin, done = i * length, 0
        first[i] = min(begin // size, length - count)
        for k in range(count):
            covered = min(max((first[i] + k + 1) * size - begin, 0), length)
            share = (2 * covered * _ONE + length) // (2 * length)
            weights[i, k] = share - done
            done = share
    return first, weights


@njit(nogil=True, cache=True, error_model="numpy")
def _linear_taps(length: int, size: int) -> tuple[I4, I4]:
    """Taps of an axis that grows: the two source pixels nearest to the output pixel's centre."""
    count = min(2, length)
    first = np.empty(size, np.int32)
    weights = np.zeros((size, count), np.int32)
    for i in range(size):
        # centre of output pixel i from that of source pixel 0, in 1/(2·size) of a source pixel
        position = max((2 * i + 1) * length - size, 0)
        first[i] = min(position // (2 * size), length - count)
        share = min(position - 2 * size * first[i], 2 * size)
        second = (2 * share * _ONE + 2 * size) // (4 * size)
        weights[i, 0] = _ONE - second * (count - 1)
        if count == 2:
            weights[i, 1] = second
    return first, weights


@njit(nogil=True, cache=True, error_model="numpy")
def _grouped(first: I4, weights: I4, group: int, flip: bool) -> tuple[I4, I4]:
    """Make the number of results a multiple of `group`, by repeating the last one's taps.

    Returns:
        The first source pixel of each, and weights [groups, taps, group]. There are at least two
        taps.
    """
    size, count = weights.shape
    groups = -(-size // group)
    firsts = np.empty(groups * group, np.int32)
    grouped = np.zeros((groups, max(count, 2), group), np.int32)
    for i in range(firsts.size):
        k = min(i, size - 1)
        k = size - 1 - k if flip else k
        firsts[i] = first[k]
        for tap in range(count):
            grouped[i // group, tap, i % group] = weights[k, tap]
    return firsts, grouped


@njit(nogil=True, cache=True, error_model="numpy")
def _widened(picture: U1, top: int, left: int, height: int, width: int) -> U1:
    """Copy a narrow box, with columns of zeros beside it."""
    copy = np.zeros((height, _NARROWEST, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                copy[y, x, channel] = picture[top + y, left + x, channel]
    return copy.reshape(-1)


@njit(nogil=True, cache=True, error_model="numpy")
def _rows(pixels: U1, begin: I8, step: np.int64, weights: I4, means: I2) -> None:
    """Average rows, whose first taps begin at `begin`; the last two vectors may overlap."""
    taps, most = np.int64(weights.shape[0]), means.shape[0] - _LANES
    for i in range(0, means.shape[0], _LANES):
        at = np.int64(min(i, most))
        source, to = _address(pixels) + at, _address(means) + 2 * _LANES * at
        vectors.average_rows(source, _address(begin), step, _address(weights), taps, to)


@njit(nogil=True, cache=True, error_model="numpy")
def _columns(means: I2, column_of: I4, weights: I4, words: U4) -> None:
    """Average columns, group by group."""
    taps = np.int64(weights.shape[1])
    for k in range(weights.shape[0]):
        first, to = _address(column_of[_COLUMNS * k :]), _address(words) + 12 * _LANES * k
        vectors.average_columns(_address(means), first, _address(weights[k]), taps, to)


@njit(nogil=True, cache=True, error_model="numpy")
def _transpose(words: U4, lines: U1) -> None:
    """Put the words of each row beside each other."""
    for k in range(words.shape[0]):
        to = _address(lines) + 4 * _LANES * k
        vectors.transpose(_address(words[k]), to, np.int64(lines.shape[1]))


@njit(nogil=True, cache=True, error_model="numpy")
def _address(array: NDArray[Any]) -> Any:
    """Return where an array begins, which must live on until the memory has been used.

    Signed: numba's sum of an unsigned and a signed integer is a float.
    """
    return np.int64(array.ctypes.data)
