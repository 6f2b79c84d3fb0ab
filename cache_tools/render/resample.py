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

from cache_tools.numerics.array_types import I4, U1, U2, U4, U8
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_ONE = 16_384
_FOURS = 4
_LANES = 4 * _FOURS
_COLUMN = 3 * _LANES  # values of one column: the channels of all lanes
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
    for first in range(0, size, _LANES):
        for four in range(_FOURS):
            for k in range(4):
                # past the last row it is made again
                y = min(first + 4 * four + k, size - 1)
                at = (top + rows_of[y]) * pitch + 3 * left
                _rows(pixels, at, pitch, row_weights[y], lines[k])
            _pack(lines, packed[four])
        _interleave(packed, lanes)
        if column_weights.shape[1] > 4:
            _many_columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        elif column_weights.shape[1] == 3:
            _three_columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        elif column_weights.shape[1] == 2:
            _two_columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        else:
            _columns(lanes.view(np.uint16), columns_of, column_weights, mixed.view(np.uint8))
        _separate(mixed, unmixed)
        for four in range(_FOURS):
            _unpack(unmixed[four], result, first + 4 * four)
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
def _tap(weights: I4, k: int) -> tuple[np.int32, int]:
    """Weight k and where it applies; what is not there weighs nothing."""
    return (weights[k], k) if k < weights.size else (np.int32(0), 0)


@njit(nogil=True, cache=True, error_model="numpy")
def _rows(pixels: U1, at: int, pitch: int, weights: I4, line: U2) -> None:
    """Weighted sum, with 8 bits of fraction, of rows `pitch` apart, the first beginning at `at`."""
    if weights.size > 4:
        _many_rows(pixels, at, pitch, weights, line)
        return
    if weights.size == 3:
        _three_rows(pixels, at, pitch, weights, line)
        return
    if weights.size <= 2:
        _two_rows(pixels, at, pitch, weights, line)
        return
    count = line.size
    (t, _), (u, k), (v, m), (w, n) = (
        _tap(weights, 0),
        _tap(weights, 1),
        _tap(weights, 2),
        _tap(weights, 3),
    )
    a, b = pixels[at:][:count], pixels[at + k * pitch :][:count]
    c, d = pixels[at + m * pitch :][:count], pixels[at + n * pitch :][:count]
    for i in range(count):
        value = t * _word(a[i]) + u * _word(b[i]) + v * _word(c[i]) + w * _word(d[i])
        line[i] = _word(value + 32) >> 6


@njit(nogil=True, cache=True, error_model="numpy")
def _three_rows(pixels: U1, at: int, pitch: int, weights: I4, line: U2) -> None:
    """Resample rows as `_rows`, for the taps of most crops."""
    count, (t, u, v) = line.size, (weights[0], weights[1], weights[2])
    a, b = pixels[at:][:count], pixels[at + pitch :][:count]
    c = pixels[at + 2 * pitch :][:count]
    for i in range(count):
        line[i] = _word(t * _word(a[i]) + u * _word(b[i]) + v * _word(c[i]) + 32) >> 6


@njit(nogil=True, cache=True, error_model="numpy")
def _two_rows(pixels: U1, at: int, pitch: int, weights: I4, line: U2) -> None:
    """Resample rows as `_rows`, for an axis that grows; of one row there is one tap."""
    count, t, (u, k) = line.size, weights[0], _tap(weights, 1)
    a, b = pixels[at:][:count], pixels[at + k * pitch :][:count]
    for i in range(count):
        line[i] = _word(t * _word(a[i]) + u * _word(b[i]) + 32) >> 6


@njit(nogil=True, cache=True, error_model="numpy")
def _many_rows(pixels: U1, at: int, pitch: int, weights: I4, line: U2) -> None:
    """Resample rows as `_rows`, for any number of taps."""
    sums = np.full(line.size, 32, np.int32)
    for k in range(weights.size):
        values = pixels[at + k * pitch :][: line.size]
        for i in range(sums.size):
            sums[i] += weights[k] * np.int32(values[i])
    for i in range(line.size):
        line[i] = sums[i] >> 6


@njit(nogil=True, cache=True, error_model="numpy")
def _pack(lines: U2, words: U8) -> None:
    """Four rows of values as one row of words."""
    a, b, c, d = lines[0], lines[1], lines[2], lines[3]
    for i in range(words.size):
        low = np.uint64(a[i]) | np.uint64(b[i]) << _16
        words[i] = low | np.uint64(c[i]) << _32 | np.uint64(d[i]) << _48


@njit(nogil=True, cache=True, error_model="numpy")
def _interleave(rows: U8, mixed: U8) -> None:
    """Four rows side by side: each word of one is followed by those of the others."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for i in range(a.size):
        mixed[4 * i] = a[i]
        mixed[4 * i + 1] = b[i]
        mixed[4 * i + 2] = c[i]
        mixed[4 * i + 3] = d[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _separate(mixed: U4, rows: U4) -> None:
    """Invert `_interleave`."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for i in range(a.size):
        a[i] = mixed[4 * i]
        b[i] = mixed[4 * i + 1]
        c[i] = mixed[4 * i + 2]
        d[i] = mixed[4 * i + 3]


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack(words: U4, out: U1, first: int) -> None:
    """Invert `_pack`, to rows `first` to `first` + 3; those past the last go there."""
    last = out.shape[0] - 1
    a, b = out[min(first, last)], out[min(first + 1, last)]
    c, d = out[min(first + 2, last)], out[min(first + 3, last)]
    for i in range(words.size):
        a[i] = words[i] & 255
        b[i] = words[i] >> 8 & 255
        c[i] = words[i] >> 16 & 255
        d[i] = words[i] >> 24


@njit(nogil=True, cache=True, error_model="numpy")
def _columns(lanes: U2, left: I4, weights: I4, out: U1) -> None:
    """Weighted sums, up to four taps, along all rows at once."""
    for x in range(left.size):
        columns, result = lanes[_COLUMN * left[x] :], out[_COLUMN * x :][:_COLUMN]
        (t, _), (u, k), (v, m), (w, n) = (
            _tap(weights[x], 0),
            _tap(weights[x], 1),
            _tap(weights[x], 2),
            _tap(weights[x], 3),
        )
        a, b = columns[:_COLUMN], columns[k * _COLUMN :][:_COLUMN]
        c, d = columns[m * _COLUMN :][:_COLUMN], columns[n * _COLUMN :][:_COLUMN]
        for i in range(_COLUMN):
            value = t * _word(a[i]) + u * _word(b[i]) + v * _word(c[i]) + w * _word(d[i])
            result[i] = _word(value + (1 << 21)) >> 22


@njit(nogil=True, cache=True, error_model="numpy")
def _three_columns(lanes: U2, left: I4, weights: I4, out: U1) -> None:
    """Resample columns as `_columns`, for the taps of most crops."""
    for x in range(left.size):
        columns, result = lanes[_COLUMN * left[x] :], out[_COLUMN * x :][:_COLUMN]
        t, u, v = weights[x, 0], weights[x, 1], weights[x, 2]
        a, b = columns[:_COLUMN], columns[_COLUMN:][:_COLUMN]
        c = columns[2 * _COLUMN :][:_COLUMN]
        for i in range(_COLUMN):
            value = t * _word(a[i]) + u * _word(b[i]) + v * _word(c[i])
            result[i] = _word(value + (1 << 21)) >> 22


@njit(nogil=True, cache=True, error_model="numpy")
def _two_columns(lanes: U2, left: I4, weights: I4, out: U1) -> None:
    """Resample columns as `_columns`, for an axis that grows."""
    for x in range(left.size):
        columns, result = lanes[_COLUMN * left[x] :], out[_COLUMN * x :][:_COLUMN]
        t, u = weights[x, 0], weights[x, 1]
        a, b = columns[:_COLUMN], columns[_COLUMN:][:_COLUMN]
        for i in range(_COLUMN):
            result[i] = _word(t * _word(a[i]) + u * _word(b[i]) + (1 << 21)) >> 22


@njit(nogil=True, cache=True, error_model="numpy")
def _many_columns(lanes: U2, left: I4, weights: I4, out: U1) -> None:
    """Resample columns as `_columns`, for any number of taps."""
    sums = np.empty(_COLUMN, np.int32)
    for x in range(left.size):
        sums[:] = 1 << 21
        for k in range(weights.shape[1]):
            weight, values = weights[x, k], lanes[_COLUMN * (left[x] + k) :][:_COLUMN]
            for i in range(_COLUMN):
                sums[i] += weight * np.int32(values[i])
        result = out[_COLUMN * x :][:_COLUMN]
        for i in range(_COLUMN):
            result[i] = sums[i] >> 22
