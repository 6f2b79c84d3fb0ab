"""Affine maps of uint8 pixels.

Integer arithmetic only, so that a pixel is the same on every processor. It means what Pillow's
`Image.transform` means, rounding towards zero where Pillow does: within 1 of 255 of it. A bilinear
map has Pillow's very bits when Pillow is given the same matrix.

A map is made line by line: first every pixel's neighbours are fetched, one by one, then sums of
them are made in 32 bits, which the vector unit does. A map that moves pixels along one axis only,
which shears and shifts do, needs no fetching: its four neighbours lie in four lines.

Shapes: H, W, 3 = rows, columns, RGB; contiguous. A pair is a pixel and its right neighbour in one
word: bytes R G B 0 R G B 0.
"""

import numpy as np

from cache_tools.numerics.array_types import I4, I8, U1, U4, U8
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

_0, _8, _16, _32 = np.uint32(0), np.uint32(8), np.uint32(16), np.uint64(32)


@njit(nogil=True, cache=True, error_model="numpy")
def affine(source: U1, matrix: I8, fill: U1, out: U1, bicubic: bool) -> int:
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
    if matrix[0] == 65536 and matrix[3] == 0 and matrix[4] == 65536 and matrix[5] & 65535 == 0:
        _along_rows(source, matrix, bicubic, out)
    elif matrix[0] == 65536 and matrix[1] == 0 and matrix[4] == 65536 and matrix[2] & 65535 == 0:
        _along_columns(source, matrix, bicubic, out)
    else:
        _along_both(source, matrix, bicubic, out)
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, out.shape[1])
        _paint(out[y, :first], fill)
        _paint(out[y, last:], fill)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def nearest(source: U1, matrix: I8, fill: U1, out: U1) -> int:
    """As `affine`, but with the nearest source pixel, halves rounded up."""
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, out.shape[1])
        _paint(out[y, :first], fill)
        _paint(out[y, last:], fill)
        for x in range(first, last):
            column = (matrix[0] * x + matrix[1] * y + matrix[2] + 32768) >> 16
            row = (matrix[3] * x + matrix[4] * y + matrix[5] + 32768) >> 16
            for c in range(3):
                out[y, x, c] = source[row, column, c]
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def _paint(pixels: U1, color: U1) -> None:
    """Give pixels one colour."""
    for x in range(pixels.shape[0]):
        for c in range(3):
            pixels[x, c] = color[c]


@njit(nogil=True, cache=True, error_model="numpy")
def _inside(source: U1, matrix: I8, y: int, width: int) -> tuple[int, int]:
    """Find the columns of an output row, half-open, that map into the source's area."""
    first, last = _between(matrix[0], matrix[1] * y + matrix[2], source.shape[1], width)
    upper, lower = _between(matrix[3], matrix[4] * y + matrix[5], source.shape[0], width)
    first = max(first, upper)
    return first, max(first, min(last, lower))


@njit(nogil=True, cache=True, error_model="numpy")
def _between(slope: int, offset: int, size: int, count: int) -> tuple[int, int]:
    """Find x of 0…count - 1, half-open, with -1/2 ≤ slope · x + offset < size - 1/2."""
    low, high = -32768 - offset, size * 65536 - 32768 - offset
    if slope == 0:
        return 0, count if low <= 0 < high else 0
    if slope < 0:
        slope, low, high = -slope, 1 - high, 1 - low
    return min(max(-(-low // slope), 0), count), min(max(-(-high // slope), 0), count)


@njit(nogil=True, cache=True, error_model="numpy")
def _along_rows(source: U1, matrix: I8, bicubic: bool, out: U1) -> None:
    """Map whole rows sideways; pixels outside of the source are left alone."""
    width = source.shape[1]
    lines, result = source.reshape(source.shape[0], -1), out.reshape(out.shape[0], -1)
    padded = np.empty(3 * (width + 4), np.uint8)
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, width)
        if first == last:
            continue
        sx = matrix[1] * y + matrix[2]
        _pad(lines[y + (matrix[5] >> 16)], padded)
        flat = padded[3 * (first + (sx >> 16) + 1) :]
        _one_row(flat, _weights(sx & 65535, bicubic), result[y, 3 * first : 3 * last])


@njit(nogil=True, cache=True, error_model="numpy")
def _pad(line: U1, padded: U1) -> None:
    """Copy a row of pixels and repeat its first and last, twice each."""
    count = line.size
    inner = padded[6:]
    for i in range(count):
        inner[i] = line[i]
    for c in range(3):
        padded[c] = padded[3 + c] = line[c]
        padded[count + 6 + c] = padded[count + 9 + c] = line[count - 3 + c]


@njit(nogil=True, cache=True, error_model="numpy")
def _one_row(flat: U1, by: tuple[int, int, int, int], line: U1) -> None:
    """Weighted sums of each pixel and the three that follow, weights in 1/2^20."""
    count = line.size
    a, b, c, d = flat[:count], flat[3:][:count], flat[6:][:count], flat[9:][:count]
    s, t, u, v = np.int32(by[0]), np.int32(by[1]), np.int32(by[2]), np.int32(by[3])
    for i in range(count):
        value = s * np.int32(a[i]) + t * np.int32(b[i]) + u * np.int32(c[i]) + v * np.int32(d[i])
        line[i] = _clip(value)


@njit(nogil=True, cache=True, error_model="numpy")
def _along_columns(source: U1, matrix: I8, bicubic: bool, out: U1) -> None:
    """Map whole columns up or down; pixels outside of the source are undefined."""
    height, width, left = source.shape[0], source.shape[1], matrix[2] >> 16
    weights = np.zeros((4, width, 3), np.int32)
    moved = np.empty((height + 3, 3 * width), np.uint8)
    first, last = max(0, -left), min(width, width - left)
    while first < last:
        end = first
        down = (matrix[3] * first + matrix[5]) >> 16
        while end < last and (matrix[3] * end + matrix[5]) >> 16 == down:
            four = _weights((matrix[3] * end + matrix[5]) & 65535, bicubic)
            for k in range(4):
                weights[k, end] = four[k]
            end += 1
        _move(source.reshape(height, -1), left, down - 1, first, end, moved)
        first = end
    for y in range(height):
        _four_rows(moved[y : y + 4], weights.reshape(4, -1), out[y].reshape(-1))


@njit(nogil=True, cache=True, error_model="numpy")
def _move(lines: U1, left: int, down: int, first: int, last: int, moved: U1) -> None:
    """Copy columns first…last - 1 of all rows from `left` to the right and `down` rows below."""
    for y in range(moved.shape[0]):
        row = lines[min(max(y + down, 0), lines.shape[0] - 1)]
        pixels, line = row[3 * (first + left) :], moved[y, 3 * first : 3 * last]
        for i in range(line.size):
            line[i] = pixels[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _weights(fraction: int, bicubic: bool) -> tuple[int, int, int, int]:
    """Weights of four neighbours in 1/2^20, summing to 1: one colour then stays that colour."""
    if not bicubic:
        return 0, (65536 - fraction) << 4, fraction << 4, 0
    one, two = fraction << 32, fraction * fraction << 16
    three, half = fraction * fraction * fraction, 1 << 27
    a = (-one + 2 * two - three + half) >> 28
    c = (one + two - three + half) >> 28
    d = (-two + three + half) >> 28
    return a, (1 << 20) - a - c - d, c, d


@njit(nogil=True, cache=True, error_model="numpy")
def _four_rows(lines: U1, weights: I4, line: U1) -> None:
    """Weighted sums of four rows, weights in 1/2^20 and of each value its own."""
    a, b, c, d = lines[0], lines[1], lines[2], lines[3]
    s, t, u, v = weights[0], weights[1], weights[2], weights[3]
    for i in range(line.size):
        upper = s[i] * np.int32(a[i]) + t[i] * np.int32(b[i])
        value = upper + u[i] * np.int32(c[i]) + v[i] * np.int32(d[i])
        line[i] = _clip(value)


@njit(nogil=True, cache=True, error_model="numpy")
def _clip(value: np.int32) -> np.uint8:
    """Round a sum of 32 bits in 1/2^20 down, and clip it to 0…255."""
    whole = np.int32(np.int32(value) >> np.int32(20))
    return np.uint8(min(max(whole, np.int32(0)), np.int32(255)))


@njit(nogil=True, cache=True, error_model="numpy")
def _along_both(source: U1, matrix: I8, bicubic: bool, out: U1) -> None:
    """Apply any map; pixels outside of the source are left alone."""
    pairs, width = _pairs(source), out.shape[1]
    at, fractions = np.empty(width, np.uint32), np.empty((2, width), np.int32)
    near, planes = np.empty((2, width), np.uint64), np.empty((3, width), np.uint8)
    weights, sums = np.empty((2, 4, width), np.int32), np.empty((4, 3, width), np.int32)
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, width)
        _locate(matrix, first, y, pairs.shape[1], at[: last - first], fractions)
        if bicubic:
            _cubic(pairs, at[: last - first], fractions, near, weights, sums, planes)
        else:
            _linear(pairs, at[: last - first], fractions, near, sums, planes)
        red, green, blue, line = planes[0], planes[1], planes[2], out[y, first:last].reshape(-1)
        for i in range(last - first):
            line[3 * i] = red[i]
            line[3 * i + 1] = green[i]
            line[3 * i + 2] = blue[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _pairs(source: U1) -> U8:
    """Make the pairs [H + 4, W + 4] of a picture with its border repeated twice on each side."""
    height, width = source.shape[0], source.shape[1]
    pairs = np.empty((height + 4, width + 4), np.uint64)
    line = np.empty(width + 5, np.uint32)
    for y in range(height + 4):
        pixels = source[min(max(y - 2, 0), height - 1)].reshape(-1)
        inner = line[2 : 2 + width]
        for x in range(width):
            low = np.uint32(pixels[3 * x]) | np.uint32(pixels[3 * x + 1]) << _8
            inner[x] = low | np.uint32(pixels[3 * x + 2]) << _16
        line[:2], line[2 + width :] = inner[0], inner[width - 1]
        right = line[1:]
        for x in range(width + 4):
            pairs[y, x] = np.uint64(line[x]) | np.uint64(right[x]) << _32
    return pairs


@njit(nogil=True, cache=True, error_model="numpy")
def _locate(matrix: I8, first: int, y: int, pitch: int, at: U4, fractions: I4) -> None:
    """Index among the pairs of each pixel's upper left neighbour of 16, and the point's fractions.

    Positions are in 1/65536 pixel and in 32 bits: a picture has less than 32,768 rows and columns.
    """
    sx = np.int32(matrix[0] * first + matrix[1] * y + matrix[2])
    sy = np.int32(matrix[3] * first + matrix[4] * y + matrix[5])
    right, down = np.int32(matrix[0]), np.int32(matrix[3])
    part_x, part_y = fractions[0], fractions[1]
    for i in range(at.size):
        x, y_ = np.int32(sx + right * i), np.int32(sy + down * i)
        at[i] = ((y_ >> 16) + 1) * pitch + (x >> 16) + 1
        part_x[i], part_y[i] = x & 65535, y_ & 65535


@njit(nogil=True, cache=True, error_model="numpy")
def _fetch(pairs: U8, at: U4, here: U8, right: U8) -> None:
    """Pairs at the indices, and those two pixels to the right."""
    behind = pairs[2:]
    for i in range(at.size):
        here[i], right[i] = pairs[at[i]], behind[at[i]]


@njit(nogil=True, cache=True, error_model="numpy")
def _linear(pairs: U8, at: U4, fractions: I4, near: U8, sums: I4, planes: U1) -> None:
    """Sample bilinearly, exactly, then round towards zero.

    Args:
        pairs: Of the source.
        at: [n], as `_locate` makes it.
        fractions: Of x and of y, [2, n or more], in 1/65536.
        near: [2, n or more], overwritten.
        sums: [4, 3, n or more], overwritten.
        planes: [3, n or more], written: the three channels.
    """
    flat, count = pairs.reshape(-1), at.size
    for row in range(2):
        _fetch(flat[pairs.shape[1] * (row + 1) + 1 :], at, near[0], near[1])
        _two_columns(near[0].view(np.uint32), fractions[0], count, sums[row])
    for channel in range(3):
        upper, lower, below = sums[0, channel], sums[1, channel], fractions[1]
        plane = planes[channel]
        for i in range(count):
            part = np.int64(below[i])
            plane[i] = (np.int64(upper[i]) * (65536 - part) + np.int64(lower[i]) * part) >> 32


@njit(nogil=True, cache=True, error_model="numpy")
def _two_columns(words: U4, part: I4, count: int, sums: I4) -> None:
    """Weighted sums of pairs, in 1/65536, of each channel."""
    red, green, blue = sums[0], sums[1], sums[2]
    for i in range(count):
        a, b, v = words[2 * i], words[2 * i + 1], part[i]
        u = np.int32(65536 - v)
        red[i] = u * _byte(a, _0) + v * _byte(b, _0)
        green[i] = u * _byte(a, _8) + v * _byte(b, _8)
        blue[i] = u * _byte(a, _16) + v * _byte(b, _16)


@njit(nogil=True, cache=True, error_model="numpy")
def _byte(word: np.uint32, shift: np.uint32) -> np.int32:
    """Take the byte of a word that is `shift` bits from its lower end."""
    return np.int32(word >> shift & np.uint32(255))


@njit(nogil=True, cache=True, error_model="numpy")
def _cubic(pairs: U8, at: U4, fractions: I4, near: U8, weights: I4, sums: I4, planes: U1) -> None:
    """Sample bicubically; as `_linear`, with [2, 4, n or more] weights to overwrite."""
    flat, count = pairs.reshape(-1), at.size
    _cubic_weights(fractions[0], count, weights[0])
    _cubic_weights(fractions[1], count, weights[1])
    for row in range(4):
        _fetch(flat[pairs.shape[1] * row :], at, near[0], near[1])
        left, right = near[0].view(np.uint32), near[1].view(np.uint32)
        _four_columns(left, right, weights[0], count, sums[row])
    for channel in range(3):
        a, b, c, d = sums[0, channel], sums[1, channel], sums[2, channel], sums[3, channel]
        s, t, u, v = weights[1, 0], weights[1, 1], weights[1, 2], weights[1, 3]
        plane = planes[channel]
        for i in range(count):
            value = s[i] * a[i] + t[i] * b[i] + u[i] * c[i] + v[i] * d[i]
            plane[i] = _clip(value)


@njit(nogil=True, cache=True, error_model="numpy")
def _cubic_weights(part: I4, count: int, weights: I4) -> None:
    """Weights of four neighbours in 1/2^14, summing to 1, of fractions rounded to 1/1024 pixel."""
    before, here, after, beyond = weights[0], weights[1], weights[2], weights[3]
    for i in range(count):
        f = np.int32((part[i] + 32) >> 6)
        g = np.int32(1024 - f)
        a = -(np.int32(f * g * g + 32768) >> 16)
        c = np.int32(f * ((1 << 20) + f * g) + 32768) >> 16
        d = -(np.int32(f * f * g + 32768) >> 16)
        before[i], after[i], beyond[i] = a, c, d
        here[i] = (1 << 14) - a - c - d


@njit(nogil=True, cache=True, error_model="numpy")
def _four_columns(left: U4, right: U4, weights: I4, count: int, sums: I4) -> None:
    """Weighted sums of four pixels, with 6 bits of fraction, of each channel."""
    red, green, blue = sums[0], sums[1], sums[2]
    s, t, u, v = weights[0], weights[1], weights[2], weights[3]
    for i in range(count):
        four = left[2 * i], left[2 * i + 1], right[2 * i], right[2 * i + 1]
        by = s[i], t[i], u[i], v[i]
        red[i] = _sum_of_four(four, by, _0)
        green[i] = _sum_of_four(four, by, _8)
        blue[i] = _sum_of_four(four, by, _16)


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_of_four(
    words: tuple[np.uint32, np.uint32, np.uint32, np.uint32],
    by: tuple[np.int32, np.int32, np.int32, np.int32],
    shift: np.uint32,
) -> np.int32:
    """Weight a channel of four pixels."""
    upper = by[0] * _byte(words[0], shift) + by[1] * _byte(words[1], shift)
    lower = by[2] * _byte(words[2], shift) + by[3] * _byte(words[3], shift)
    return np.int32(np.int32(upper + lower + 128) >> 8)
