"""Resize in integers: the mean over the area of an output pixel, or linear where an axis grows.

OpenCV's INTER_AREA computes the same mean in floats, one column after another. Here sixteen rows of
the result are made side by side, so that the vector unit does the work (`vectors`): several times
as fast, and within 1 of 255 of it. INTER_AREA is nearly the nearest pixel on an axis that grows,
hence linear interpolation there. Weights are in 1/2^14 and add up exactly, so one colour stays that
colour. No loop takes a slice of an array: to count references, processors wait for all stores.

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
    row_of, row_weights = taps(height, size, _LANES, False)
    column_of, column_weights = taps(width, size, _COLUMNS, flip)
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
    for group in range(row_weights.shape[0]):
        _rows(pixels, begin, step, row_weights, group, means)
        first = _LANES * group
        place = _address(result) + np.int64(first * result.shape[1])
        _columns(means, column_of, column_weights, words, place)
        _transpose(words, lines)
        for y in range(first, min(first + _LANES, size)):
            for i in range(result.shape[1]):
                result[y, i] = lines[y - first, i]
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def taps(length: int, size: int, group: int, flip: bool) -> tuple[I4, I4]:
    """First source pixel and weights in 1/2^14 of each output pixel of one axis, or of its flip.

    The taps of the last one are repeated until their number is a multiple of `group`.

    Returns:
        First source pixels, and weights [groups, taps, group]; there are at least two taps, of
        which the second of an axis of one pixel has no weight.
    """
    count, groups = min(length // size + 2 if length >= size else 2, length), -(-size // group)
    first = np.empty(groups * group, np.int32)
    weights = np.zeros((groups, max(count, 2), group), np.int32)
    for k in range(groups):
        for lane in range(group):
            at = min(group * k + lane, size - 1)
            at = size - 1 - at if flip else at
            if length >= size:
                source = _area(at, length, size, count, weights, k, lane)
            else:
                source = _linear(at, length, size, count, weights, k, lane)
            first[group * k + lane] = source
    return first, weights


@njit(nogil=True, cache=True, error_model="numpy")
def _area(at: int, length: int, size: int, count: int, weights: I4, k: int, lane: int) -> int:
    """Write the weights of output pixel `at` of an axis that shrinks; return its first tap.

    It covers [at·length, (at + 1)·length), where source pixel k covers [k·size, (k + 1)·size).
    """
    first, done = min(_floor(at * length, size), length - count), 0
    end = first * size - at * length
    for tap in range(count):
        end += size
        share = _floor(2 * min(max(end, 0), length) * _ONE + length, 2 * length)
        weights[k, tap, lane] = share - done
        done = share
    return first


@njit(nogil=True, cache=True, error_model="numpy")
def _linear(at: int, length: int, size: int, count: int, weights: I4, k: int, lane: int) -> int:
    """Write the weights of output pixel `at` of an axis that grows; return its first tap.

    It is made of the two source pixels nearest to its centre.
    """
    # centre of the output pixel from that of source pixel 0, in 1/(2·size) of a source pixel
    position = max((2 * at + 1) * length - size, 0)
    first = min(_floor(position, 2 * size), length - count)
    share = min(position - 2 * size * first, 2 * size)
    second = _floor(2 * share * _ONE + 2 * size, 4 * size) if count == 2 else 0
    weights[k, 0, lane], weights[k, 1, lane] = _ONE - second, second
    return first


@njit(nogil=True, cache=True, error_model="numpy")
def _floor(value: int, divisor: int) -> int:
    """Divide, rounding down; exact for values of less than 2^52.

    A quotient that is no integer is 1/divisor or more below the next one, which is more than a
    float is rounded by. Processors divide floats several times as fast as integers of 64 bits.
    """
    return int(value / divisor)


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
def _rows(pixels: U1, begin: I8, step: np.int64, weights: I4, group: int, means: I2) -> None:
    """Average the rows of a group, with first taps at `begin`; the last two vectors may overlap."""
    source, to = _address(pixels), _address(means)
    taps, most = np.int64(weights.shape[1]), means.shape[0] - _LANES
    start = _address(begin) + 8 * _LANES * group
    by = _address(weights) + 4 * _LANES * taps * group
    for i in range(0, means.shape[0], _LANES):
        at = np.int64(min(i, most))
        vectors.average_rows(source + at, start, step, by, taps, to + 2 * _LANES * at)


@njit(nogil=True, cache=True, error_model="numpy")
def _columns(means: I2, column_of: I4, weights: I4, words: U4, place: np.int64) -> None:
    """Average columns, group by group; fetch the memory at `place`, where the results will go."""
    source, first, by, to = (
        _address(means), _address(column_of), _address(weights), _address(words),
    )  # fmt: skip
    taps, count = np.int64(weights.shape[1]), np.int64(3 * _COLUMNS * _LANES)
    for k in range(weights.shape[0]):
        vectors.prefetch(place + count * k, count)
        vectors.average_columns(source, first, by, taps, to)
        first, by, to = first + 4 * _COLUMNS, by + 4 * _COLUMNS * taps, to + 12 * _LANES


@njit(nogil=True, cache=True, error_model="numpy")
def _transpose(words: U4, lines: U1) -> None:
    """Put the words of each row beside each other."""
    source, to, pitch = _address(words), _address(lines), np.int64(lines.shape[1])
    for _ in range(words.shape[0]):
        vectors.transpose(source, to, pitch)
        source, to = source + 4 * _LANES * _LANES, to + 4 * _LANES


@njit(nogil=True, cache=True, error_model="numpy")
def _address(array: NDArray[Any]) -> Any:
    """Return where an array begins, which must live on until the memory has been used.

    Signed: numba's sum of an unsigned and a signed integer is a float.
    """
    return np.int64(array.ctypes.data)
