"""Resize in integers: the mean over the area of an output pixel, or linear where an axis grows.

OpenCV's INTER_AREA computes the same mean in floats, one column after another. Here sixteen rows of
the result are made side by side, so that the vector unit does the work: several times as fast, and
within 1 of 255 of it. INTER_AREA is nearly the nearest pixel on an axis that grows, hence linear
interpolation there. Weights are in 1/2^14 and add up exactly, so one colour stays that colour.

A compiler does not vectorise a loop that scatters bytes or 16-bit values. So two rows' values
become one word, and eight rows of words are interleaved; back, words of four rows' bytes are taken
apart.

Shapes: H, W, 3 = rows, columns, RGB of the source; S = height and width of the result.
"""

from typing import Any

import numpy as np

from cache_tools.numerics.array_types import I4, I8, U1, U2, U4
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_ONE = 16_384
_FOURS = 4
_LANES = 4 * _FOURS
_COLUMN = 3 * _LANES  # values of one column: the channels of all lanes
_u = np.uintp  # an index without a sign needs no check for one: loops become vector code
_word = np.uint32  # Numba adds and multiplies words in 64 bits, unless the result is made one


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
    pixels, pitch, result = picture.reshape(-1), 3 * picture.shape[1], out.reshape(size, -1)
    pairs, lanes = np.empty((_LANES // 2, 3 * width), np.uint32), np.empty(24 * width, np.uint32)
    mixed, unmixed = np.empty(12 * size, np.uint32), np.empty((_FOURS, 3 * size), np.uint32)
    begin_S = (top + rows_of) * np.int64(pitch) + 3 * left
    for first in range(0, size, _LANES):
        _rows(pixels, begin_S, pitch, row_weights, first, pairs)
        _interleave(pairs, lanes)
        _columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        _separate(mixed, unmixed)
        _unpack(unmixed.view(np.uint8), result, first)
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
def _rows(pixels: U1, begin_S: I8, pitch: int, weights: I4, first: int, pairs: U4) -> None:
    """Weighted sums, with 8 bits of fraction, of rows `pitch` apart: rows `first` to `first` + 15.

    A word has the values of two rows. Rows past the last have its taps. `begin_S`: where the taps
    of each row begin.
    """
    count, last, step = weights.shape[1], begin_S.size - 1, _u(pitch)
    sums = np.empty((2, pairs.shape[1]), np.uint32)
    for k in range(_u(pairs.shape[0])):
        y, z = _u(min(first + 2 * k, last)), _u(min(first + 2 * k + 1, last))
        a, b = _u(begin_S[y]), _u(begin_S[z])
        # weights of the taps of row y, and of row z
        t, u = _word(weights[y, 0]), _word(weights[y, 1] if count > 1 else 0)
        p, q = _word(weights[z, 0]), _word(weights[z, 1] if count > 1 else 0)
        if count <= 2:
            c, d = a + step * _u(count - 1), b + step * _u(count - 1)
            for i in range(_u(pairs.shape[1])):
                one = _word(t * _word(pixels[a + i]) + u * _word(pixels[c + i]))
                two = _word(p * _word(pixels[b + i]) + q * _word(pixels[d + i]))
                pairs[k, i] = _pair(one, two)
        elif count == 3:
            v, r = _word(weights[y, 2]), _word(weights[z, 2])
            c, d, e, f = a + step, b + step, a + step + step, b + step + step
            for i in range(_u(pairs.shape[1])):
                one = _word(t * _word(pixels[a + i]) + u * _word(pixels[c + i]))
                two = _word(p * _word(pixels[b + i]) + q * _word(pixels[d + i]))
                one = _word(one + v * _word(pixels[e + i]))
                two = _word(two + r * _word(pixels[f + i]))
                pairs[k, i] = _pair(one, two)
        else:
            sums[:] = 0
            for tap in range(_u(count)):
                t, p = _word(weights[y, tap]), _word(weights[z, tap])
                c, d = a + step * tap, b + step * tap
                for i in range(_u(pairs.shape[1])):
                    sums[0, i] += _word(t * _word(pixels[c + i]))
                    sums[1, i] += _word(p * _word(pixels[d + i]))
            for i in range(_u(pairs.shape[1])):
                pairs[k, i] = _pair(sums[0, i], sums[1, i])


@njit(nogil=True, cache=True, error_model="numpy")
def _pair(one: Any, two: Any) -> Any:
    """Put two sums of rows into one word."""
    low, high = _word(one + 32) >> 6, _word(two + 32) >> 6
    return _word(_word(low) | _word(high) << 16)


@njit(nogil=True, cache=True, error_model="numpy")
def _interleave(pairs: U4, lanes: U4) -> None:
    """Rows side by side: each word of one is followed by those of the others."""
    for i in range(_u(pairs.shape[1])):
        for k in range(_u(_LANES // 2)):
            lanes[(_LANES // 2) * i + k] = pairs[k, i]


@njit(nogil=True, cache=True, error_model="numpy")
def _separate(mixed: U4, rows: U4) -> None:
    """Words of four rows' bytes, that follow each other in turn, to rows of words."""
    for i in range(_u(rows.shape[1])):
        for four in range(_u(_FOURS)):
            rows[four, i] = mixed[_FOURS * i + four]


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack(mixed: U1, out: U1, first: int) -> None:
    """Bytes of four rows, that follow each other in turn, to rows `first` to `first` + 15.

    Those past the last go there.
    """
    last = out.shape[0] - 1
    for four in range(_u(_FOURS)):
        y = first + 4 * np.int64(four)
        a, b = _u(min(y, last)), _u(min(y + 1, last))
        c, d = _u(min(y + 2, last)), _u(min(y + 3, last))
        for i in range(_u(out.shape[1])):
            out[a, i] = mixed[four, 4 * i]
            out[b, i] = mixed[four, 4 * i + _u(1)]
            out[c, i] = mixed[four, 4 * i + _u(2)]
            out[d, i] = mixed[four, 4 * i + _u(3)]


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
