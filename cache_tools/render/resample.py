"""Resize in integers: the mean over the area of an output pixel, or linear where an axis grows.

OpenCV's INTER_AREA computes the same mean in floats, one column after another. Here sixteen rows of
the result are made side by side, so that the vector unit does the work: several times as fast, and
within 1 of 255 of it. INTER_AREA is nearly the nearest pixel on an axis that grows, hence linear
interpolation there. Weights are in 1/2^14 and add up exactly, so one colour stays that colour.

A compiler does not vectorise a loop that scatters bytes or 16-bit values. So rows come side by side
in two steps it does vectorise: four rows' values become one word, then four rows of words are
interleaved; and back the same way.

Shapes: H, W, 3 = rows, columns, RGB of the source; S = height and width of the result.
"""

import numpy as np

from cache_tools.numerics.array_types import I4, I8, U1, U2, U4, U8
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_ONE = 16_384
_FOURS = 4
_LANES = 4 * _FOURS
_COLUMN = 3 * _LANES  # values of one column: the channels of all lanes
_u = np.uintp  # an index without a sign needs no check for one: loops become vector code
_word = np.uint32  # Numba adds and multiplies words in 64 bits, unless the result is made one
_16, _32, _48 = np.uint64(16), np.uint64(32), np.uint64(48)


@njit(nogil=True, cache=True, error_model="numpy")
def crop(picture: U1, top: int, left: int, height: int, width: int, flip: bool, out: U1) -> int:
    """Cut a box (in pixels) out of a contiguous picture, [H, W, 3], and resize it to [S, S, 3].

    Flipped horizontally, columns of the result have the taps of those of the other end.
    """
    size = out.shape[0]
    rows_of, row_weights = taps(height, size)
    columns_of, column_weights = taps(width, size)
    if flip:
        columns_of, column_weights = columns_of[::-1].copy(), column_weights[::-1].copy()
    pixels, pitch = picture.reshape(-1), 3 * picture.shape[1]
    lines = np.empty((4, 3 * width), np.uint16)
    packed, lanes = np.empty((_FOURS, 3 * width), np.uint64), np.empty(12 * width, np.uint64)
    mixed, unmixed = np.empty(12 * size, np.uint32), np.empty((_FOURS, 3 * size), np.uint32)
    result = out.reshape(size, -1)
    begin_S = (top + rows_of) * np.int64(pitch) + 3 * left
    for first in range(0, size, _LANES):
        for four in range(_FOURS):
            _rows(pixels, begin_S, pitch, row_weights, first + 4 * four, lines)
            _pack(lines, packed, four)
        _interleave(packed, lanes)
        _columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        _separate(mixed, unmixed)
        _unpack(unmixed, result, first)
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
def _rows(pixels: U1, begin_S: I8, pitch: int, weights: I4, first: int, lines: U2) -> None:
    """Weighted sums, with 8 bits of fraction, of rows `pitch` apart: rows `first` to `first` + 3.

    Those past the last row are made of its taps. `begin_S`: where the taps of each row begin.
    """
    count, sums = weights.shape[1], np.empty(lines.shape[1], np.uint32)
    for k in range(_u(4)):
        y = _u(min(first + k, begin_S.size - 1))
        at, step = _u(begin_S[y]), _u(pitch)
        t, u = _word(weights[y, 0]), _word(weights[y, 1] if count > 1 else 0)
        if count <= 2:
            b = at + step * _u(count - 1)
            for i in range(_u(lines.shape[1])):
                value = t * _word(pixels[at + i]) + u * _word(pixels[b + i])
                lines[k, i] = _word(value + 32) >> 6
        elif count == 3:
            b, c, v = at + step, at + step + step, _word(weights[y, 2])
            for i in range(_u(lines.shape[1])):
                value = t * _word(pixels[at + i]) + u * _word(pixels[b + i])
                lines[k, i] = _word(value + v * _word(pixels[c + i]) + 32) >> 6
        elif count == 4:
            b, c, d = at + step, at + step + step, at + step + step + step
            v, w = _word(weights[y, 2]), _word(weights[y, 3])
            for i in range(_u(lines.shape[1])):
                value = t * _word(pixels[at + i]) + u * _word(pixels[b + i])
                other = v * _word(pixels[c + i]) + w * _word(pixels[d + i])
                lines[k, i] = _word(value + other + 32) >> 6
        else:
            sums[:] = 32
            for tap in range(_u(count)):
                weight, begin = _word(weights[y, tap]), at + step * tap
                for i in range(_u(sums.size)):
                    sums[i] += _word(weight * _word(pixels[begin + i]))
            for i in range(_u(sums.size)):
                lines[k, i] = sums[i] >> 6


@njit(nogil=True, cache=True, error_model="numpy")
def _pack(lines: U2, packed: U8, row: int) -> None:
    """Four rows of values as one row of words."""
    a, b, c, d = _u(0), _u(1), _u(2), _u(3)
    for i in range(_u(lines.shape[1])):
        low = np.uint64(lines[a, i]) | np.uint64(lines[b, i]) << _16
        packed[row, i] = low | np.uint64(lines[c, i]) << _32 | np.uint64(lines[d, i]) << _48


@njit(nogil=True, cache=True, error_model="numpy")
def _interleave(rows: U8, mixed: U8) -> None:
    """Four rows side by side: each word of one is followed by those of the others."""
    for i in range(_u(rows.shape[1])):
        for four in range(_u(_FOURS)):
            mixed[4 * i + four] = rows[four, i]


@njit(nogil=True, cache=True, error_model="numpy")
def _separate(mixed: U4, rows: U4) -> None:
    """Invert `_interleave`."""
    for i in range(_u(rows.shape[1])):
        for four in range(_u(_FOURS)):
            rows[four, i] = mixed[4 * i + four]


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack(rows: U4, out: U1, first: int) -> None:
    """Invert `_pack`, to rows `first` to `first` + 15; those past the last go there."""
    last = out.shape[0] - 1
    for four in range(_u(_FOURS)):
        y = first + 4 * np.int64(four)
        a, b = _u(min(y, last)), _u(min(y + 1, last))
        c, d = _u(min(y + 2, last)), _u(min(y + 3, last))
        for i in range(_u(rows.shape[1])):
            words = rows[four, i]
            out[a, i] = words & 255
            out[b, i] = words >> 8 & 255
            out[c, i] = words >> 16 & 255
            out[d, i] = words >> 24


@njit(nogil=True, cache=True, error_model="numpy")
def _columns(lanes: U2, left: I4, weights: I4, out: U1) -> None:
    """Weighted sums along all rows at once."""
    count, sums = weights.shape[1], np.empty(_COLUMN, np.uint32)
    for x in range(_u(left.size)):
        at, to = _u(_COLUMN * left[x]), _u(_COLUMN) * x
        t, u = _word(weights[x, 0]), _word(weights[x, 1] if count > 1 else 0)
        if count <= 2:
            b = at + _u(_COLUMN * (count - 1))
            for i in range(_u(_COLUMN)):
                value = t * _word(lanes[at + i]) + u * _word(lanes[b + i])
                out[to + i] = _word(value + (1 << 21)) >> 22
        elif count == 3:
            b, c, v = at + _u(_COLUMN), at + _u(2 * _COLUMN), _word(weights[x, 2])
            for i in range(_u(_COLUMN)):
                value = t * _word(lanes[at + i]) + u * _word(lanes[b + i])
                out[to + i] = _word(value + v * _word(lanes[c + i]) + (1 << 21)) >> 22
        elif count == 4:
            b, c, d = at + _u(_COLUMN), at + _u(2 * _COLUMN), at + _u(3 * _COLUMN)
            v, w = _word(weights[x, 2]), _word(weights[x, 3])
            for i in range(_u(_COLUMN)):
                value = t * _word(lanes[at + i]) + u * _word(lanes[b + i])
                other = v * _word(lanes[c + i]) + w * _word(lanes[d + i])
                out[to + i] = _word(value + other + (1 << 21)) >> 22
        else:
            sums[:] = 1 << 21
            for tap in range(_u(count)):
                weight, begin = _word(weights[x, tap]), at + _u(_COLUMN) * tap
                for i in range(_u(_COLUMN)):
                    sums[i] += _word(weight * _word(lanes[begin + i]))
            for i in range(_u(_COLUMN)):
                out[to + i] = sums[i] >> 22
