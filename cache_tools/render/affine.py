"""Affine maps of uint8 pixels.

Integer arithmetic only, so that a pixel is the same on every processor. It means what Pillow's
`Image.transform` means, rounding towards zero where Pillow does: within 1 of 255 of it. A bilinear
map has Pillow's very bits when Pillow is given the same matrix.

A map is made line by line. Of a bicubic one the vector unit weights a point's sixteen pixels, four
of a row at once; of a bilinear one, the same channel of many points. A map that moves pixels along
one axis only, which shears and shifts do, needs no fetching: four neighbours lie in four lines.

Shapes: H, W, 3 = rows, columns, RGB; contiguous. A word is a pixel, bytes R G B 0, and a pair a
pixel and its right neighbour: R G B 0 R G B 0.
"""

import numpy as np

from cache_tools.numerics.array_types import I2, I4, I8, U1, U4, U8
from cache_tools.render import vectors
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit


def _cubic_weights() -> I2:
    """Compute weights of four neighbours, [1025, 4], in 1/2^14 and summing to 1."""
    f = np.arange(1025)
    g = 1024 - f
    before, beyond = (-(product + 32768 >> 16) for product in (f * g * g, f * f * g))
    after = f * ((1 << 20) + f * g) + 32768 >> 16
    here = (1 << 14) - before - after - beyond
    return np.stack([before, here, after, beyond], 1).astype(np.int16)


_CUBIC = _cubic_weights()
"""Weights of four neighbours, by the distance from the second in 1/1024 pixel."""
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
    padded = np.zeros(3 * (width + 4) + vectors.LANES, np.uint8)
    averages = np.empty(3 * width + vectors.LANES, np.uint8)
    weights = np.empty((4, vectors.LANES), np.int32)
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, width)
        if first == last:
            continue
        sx = matrix[1] * y + matrix[2]
        _pad(lines[y + (matrix[5] >> 16)], padded)
        by = _weights(sx & 65535, bicubic)
        for k in range(4):
            weights[k] = by[k]
        vectors.average_four(
            padded.ctypes.data + 3 * (first + (sx >> 16) + 1), 3, weights.ctypes.data,
            4 * vectors.LANES, 0, 3 * (last - first), averages.ctypes.data,
        )  # fmt: skip
        line = result[y, 3 * first : 3 * last]
        for i in range(line.size):
            line[i] = averages[i]


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
def _along_columns(source: U1, matrix: I8, bicubic: bool, out: U1) -> None:
    """Map whole columns up or down; pixels outside of the source are undefined."""
    height, width, left = source.shape[0], source.shape[1], matrix[2] >> 16
    weights = np.zeros((4, 3 * width + vectors.LANES), np.int32)
    room = np.zeros((height + 3) * 3 * width + vectors.LANES, np.uint8)
    moved = room[: -vectors.LANES].reshape(height + 3, -1)
    averages = np.empty(3 * width + vectors.LANES, np.uint8)
    first, last = max(0, -left), min(width, width - left)
    while first < last:
        end = first
        down = (matrix[3] * first + matrix[5]) >> 16
        while end < last and (matrix[3] * end + matrix[5]) >> 16 == down:
            by = _weights((matrix[3] * end + matrix[5]) & 65535, bicubic)
            for k in range(4):
                for c in range(3):
                    weights[k, 3 * end + c] = by[k]
            end += 1
        _move(source.reshape(height, -1), left, down - 1, first, end, moved)
        first = end
    for y in range(height):
        vectors.average_four(
            moved[y:].ctypes.data, 3 * width, weights.ctypes.data, 4 * weights.shape[1],
            4 * vectors.LANES, 3 * width, averages.ctypes.data,
        )  # fmt: skip
        line = out[y].reshape(-1)
        for i in range(line.size):
            line[i] = averages[i]


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
def _along_both(source: U1, matrix: I8, bicubic: bool, out: U1) -> None:
    """Apply any map; pixels outside of the source are left alone."""
    words, width = _words(source), out.shape[1]
    pairs = _pairs(words if not bicubic else words[:0])
    at, fractions = np.empty(width, np.uint32), np.empty((2, width), np.int32)
    near, planes = np.empty(width, np.uint64), np.empty((3, width), np.uint8)
    sums, pixels = np.empty((2, 3, width), np.int32), np.empty(3 * width + 1, np.uint8)
    for y in range(out.shape[0]):
        first, last = _inside(source, matrix, y, width)
        count = last - first
        _locate(matrix, first, y, words.shape[1], at[:count], fractions)
        if bicubic:
            _cubic(words, at, fractions, count, pixels)
        else:
            _linear(pairs, at[:count], fractions, near, sums, planes)
            red, green, blue = planes[0], planes[1], planes[2]
            for i in range(count):
                pixels[3 * i] = red[i]
                pixels[3 * i + 1] = green[i]
                pixels[3 * i + 2] = blue[i]
        line = out[y, first:last].reshape(-1)
        for i in range(line.size):
            line[i] = pixels[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _words(source: U1) -> U4:
    """Make words [H + 4, W + 4] of a picture with its border repeated twice on each side."""
    height, width = source.shape[0], source.shape[1]
    words = np.empty((height + 4, width + 4), np.uint32)
    for y in range(height + 4):
        pixels = source[min(max(y - 2, 0), height - 1)].reshape(-1)
        line = words[y]
        inner = line[2 : 2 + width]
        for x in range(width):
            low = np.uint32(pixels[3 * x]) | np.uint32(pixels[3 * x + 1]) << _8
            inner[x] = low | np.uint32(pixels[3 * x + 2]) << _16
        line[:2], line[2 + width :] = inner[0], inner[width - 1]
    return words


@njit(nogil=True, cache=True, error_model="numpy")
def _pairs(words: U4) -> U8:
    """Join each word with that at its right; the last of a row has none."""
    pairs = np.empty(words.shape, np.uint64)
    for y in range(words.shape[0]):
        line, right = words[y], words[y, 1:]
        for x in range(right.size):
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
def _linear(pairs: U8, at: U4, fractions: I4, near: U8, sums: I4, planes: U1) -> None:
    """Sample bilinearly, exactly, then round towards zero.

    Args:
        pairs: Of the source.
        at: [n], as `_locate` makes it.
        fractions: Of x and of y, [2, n or more], in 1/65536.
        near: [n or more], overwritten.
        sums: [2, 3, n or more], overwritten.
        planes: [3, n or more], written: the three channels.
    """
    flat, count = pairs.reshape(-1), at.size
    for row in range(2):
        inner = flat[pairs.shape[1] * (row + 1) + 1 :]
        for i in range(count):
            near[i] = inner[at[i]]
        _two_columns(near.view(np.uint32), fractions[0], count, sums[row])
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
def _cubic(words: U4, at: U4, fractions: I4, count: int, pixels: U1) -> None:
    """Sample bicubically.

    Args:
        words: Of the source.
        at: As `_locate` makes it.
        fractions: Of x and of y, [2, count or more], in 1/65536.
        count: Number of points.
        pixels: [3 * count + 1 or more], written.
    """
    vectors.sample_bicubic(
        words.ctypes.data, 4 * words.shape[1], at.ctypes.data,
        fractions[0].ctypes.data, fractions[1].ctypes.data, _CUBIC.ctypes.data, count,
        pixels.ctypes.data,
    )  # fmt: skip
