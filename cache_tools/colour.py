"""Colour operations on uint8 pixels: a pixel depends on itself and on its picture's histogram.

Integer arithmetic only, so that a pixel is the same on every processor, and in place. They mean
what Pillow's ImageOps and ImageEnhance and torchvision's `adjust_hue` mean, to the bit but for the
blends (brightness, contrast, color) and the hue: these are within 1 of 255, and not equal where
Pillow's single precision crosses an integer.

numba sees changes of a compiled function's own file only, so no function of one of these modules
calls a compiled one of another; `kernels.apply`, which does, is not kept on disk.

Shapes: H, W, 3 = rows, columns, RGB; contiguous.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]

# Where a hue is exactly j/255, Pillow's single precision decides between j and j - 1; everywhere
# else its rounding cannot matter. Bit j of this number is set where it says j - 1.
_HUE_DOWN = 0x2222223232222222AAAAA000001111100000000000000FFFFFFFE
_HUE_DOWN_256 = np.array([_HUE_DOWN >> j & 1 for j in range(256)], dtype=np.int64)


@njit(nogil=True, cache=True, error_model="numpy")
def _map(image: U1, table: I8) -> None:
    """Replace every value v of every channel by table[v], clipped to 0…255."""
    for channel in range(3):
        _map_channel(image, channel, table)


@njit(nogil=True, cache=True, error_model="numpy")
def _map_channel(image: U1, channel: int, table: I8) -> None:
    """Replace every value v of one channel by table[v], clipped to 0…255."""
    clipped = np.empty(256, np.uint8)
    for v in range(256):
        clipped[v] = min(max(table[v], 0), 255)
    flat = image.reshape(-1)
    for i in range(channel, flat.size, 3):
        flat[i] = clipped[flat[i]]


@njit(nogil=True, cache=True, error_model="numpy")
def _histogram(image: U1, channel: int) -> tuple[I8, int, int]:
    """How often each of the 256 values occurs in a channel; the lowest and the highest there."""
    counts = np.zeros(256, np.int64)
    flat = image.reshape(-1)
    for i in range(channel, flat.size, 3):
        counts[flat[i]] += 1
    low, high = 0, 255
    while counts[low] == 0:
        low += 1
    while counts[high] == 0:
        high -= 1
    return counts, low, high


@njit(nogil=True, cache=True, error_model="numpy")
def _grey(red: int, green: int, blue: int) -> int:
    """Pillow's "L" of a pixel (ITU-R 601)."""
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@njit(nogil=True, cache=True, error_model="numpy")
def invert(image: U1) -> None:
    """Replace every value v by 255 - v."""
    flat = image.reshape(-1)
    for i in range(flat.size):
        flat[i] = 255 - flat[i]


@njit(nogil=True, cache=True, error_model="numpy")
def posterize(image: U1, bits: int) -> None:
    """Keep the upper `bits` bits of every value; 8 or more change nothing, 0 leaves black."""
    flat = image.reshape(-1)
    mask = 256 - (1 << (8 - min(max(bits, 0), 8)))
    for i in range(flat.size):
        flat[i] = flat[i] & mask


@njit(nogil=True, cache=True, error_model="numpy")
def solarize(image: U1, threshold: int) -> None:
    """Invert the values from `threshold` (0 to 256) on."""
    table = np.empty(256, np.int64)
    for v in range(256):
        table[v] = v if v < threshold else 255 - v
    _map(image, table)


@njit(nogil=True, cache=True, error_model="numpy")
def solarize_add(image: U1, add: int, threshold: int = 128) -> None:
    """Add `add` to the values below `threshold`, up to 255."""
    table = np.empty(256, np.int64)
    for v in range(256):
        table[v] = v + add if v < threshold else v
    _map(image, table)


@njit(nogil=True, cache=True, error_model="numpy")
def _round_53(value: int) -> int:
    """A non-negative integer of up to 62 bits, rounded to 53 significant ones, half to even."""
    shift = 0
    while value >> shift >= 1 << 53:
        shift += 1
    if shift:
        rest, value = value & ((1 << shift) - 1), value >> shift
        half = 1 << (shift - 1)
        if rest > half or (rest == half and value & 1):
            value += 1
    return value << shift


@njit(nogil=True, cache=True, error_model="numpy")
def _stretch(low: int, high: int) -> I8:
    """Pillow's table that takes low…high to 0…255, low < high.

    The exact 255 · (v - low) / (high - low) is not it: where that is an integer, Pillow's double
    precision can fall one short. So its three roundings are made here, on 53-bit integers.
    """
    exponent = 52
    while 255 << exponent >= (high - low) << 53:
        exponent -= 1
    scale, rest = (255 << exponent) // (high - low), (255 << exponent) % (high - low)
    if 2 * rest > high - low or (2 * rest == high - low and scale & 1):
        scale += 1
    offset = _round_53(low * scale)
    table = np.zeros(256, np.int64)
    for v in range(low, 256):
        table[v] = _round_53(max(_round_53(v * scale) - offset, 0)) >> exponent
    return table


@njit(nogil=True, cache=True, error_model="numpy")
def autocontrast(image: U1) -> None:
    """Stretch every channel to 0…255; a channel of one value stays."""
    for channel in range(3):
        _, low, high = _histogram(image, channel)
        if low < high:
            _map_channel(image, channel, _stretch(low, high))


@njit(nogil=True, cache=True, error_model="numpy")
def equalize(image: U1) -> None:
    """Make every channel's histogram as even as Pillow does; a channel of one value stays."""
    for channel in range(3):
        counts, _, high = _histogram(image, channel)
        step = (image.shape[0] * image.shape[1] - counts[high]) // 255
        if step == 0:
            continue
        below = step // 2
        for v in range(256):
            count, counts[v] = counts[v], below // step
            below += count
        _map_channel(image, channel, counts)


@njit(nogil=True, cache=True, error_model="numpy")
def grayscale(image: U1) -> None:
    """Give the three channels Pillow's "L"."""
    flat = image.reshape(-1)
    for i in range(0, flat.size, 3):
        grey = _grey(flat[i], flat[i + 1], flat[i + 2])
        flat[i], flat[i + 1], flat[i + 2] = grey, grey, grey


@njit(nogil=True, cache=True, error_model="numpy")
def _blend(image: U1, level: int, factor: int) -> None:
    """Blend from one grey level, rounding towards zero."""
    table = np.empty(256, np.int64)
    for v in range(256):
        table[v] = (level * 65536 + (v - level) * factor) >> 16
    _map(image, table)


@njit(nogil=True, cache=True, error_model="numpy")
def brightness(image: U1, factor: int) -> None:
    """Blend from black; `factor` in 1/65536, at 65536 nothing changes."""
    _blend(image, 0, factor)


@njit(nogil=True, cache=True, error_model="numpy")
def contrast(image: U1, factor: int) -> None:
    """Blend from the picture's mean grey; `factor` in 1/65536, at 65536 nothing changes."""
    flat = image.reshape(-1)
    total = 0
    for i in range(0, flat.size, 3):
        total += _grey(flat[i], flat[i + 1], flat[i + 2])
    pixels = flat.size // 3
    mean = (2 * total + pixels) // (2 * pixels)
    _blend(image, mean, factor)


@njit(nogil=True, cache=True, error_model="numpy")
def color(image: U1, factor: int) -> None:
    """Blend from the grey picture; `factor` in 1/65536, at 65536 nothing changes."""
    flat = image.reshape(-1)
    for i in range(0, flat.size, 3):
        grey = _grey(flat[i], flat[i + 1], flat[i + 2])
        for j in range(i, i + 3):
            value = (grey * 65536 + (flat[j] - grey) * factor) >> 16
            flat[j] = min(max(value, 0), 255)


@njit(nogil=True, cache=True, error_model="numpy")
def _hue_of(
    red: np.int64, green: np.int64, blue: np.int64, high: np.int64, chroma: np.int64
) -> np.int64:
    """Pillow's "H" of a pixel that is not grey; `high` is its maximum."""
    if red == high:
        turn = green - blue
    elif green == high:
        turn = 2 * chroma + blue - red
    else:
        turn = 4 * chroma + red - green
    if turn < 0:
        turn += 6 * chroma
    level = 255 * turn // (6 * chroma)
    if level * 6 * chroma == 255 * turn:
        level -= _HUE_DOWN_256[level]
    return level


@njit(nogil=True, cache=True, error_model="numpy")
def hue(image: U1, shift: int) -> None:
    """Add `shift` (0 to 255, modulo 256) to the hue, through Pillow's 8-bit HSV and back."""
    flat = image.reshape(-1)
    for i in range(0, flat.size, 3):
        red, green, blue = np.int64(flat[i]), np.int64(flat[i + 1]), np.int64(flat[i + 2])
        high = max(red, green, blue)
        chroma = high - min(red, green, blue)
        if chroma == 0:
            continue
        saturation = 255 * chroma // high
        angle = 6 * ((_hue_of(red, green, blue, high, chroma) + shift) & 255)
        sector = angle // 255
        part = angle - 255 * sector
        # rounded to nearest: the denominators are odd, so that there are no ties
        p = (2 * high * (255 - saturation) + 255) // 510
        q = (2 * high * (65025 - saturation * part) + 65025) // 130050
        t = (2 * high * (65025 - saturation * (255 - part)) + 65025) // 130050
        if sector in (0, 6):
            red, green, blue = high, t, p
        elif sector == 1:
            red, green, blue = q, high, p
        elif sector == 2:
            red, green, blue = p, high, t
        elif sector == 3:
            red, green, blue = p, q, high
        elif sector == 4:
            red, green, blue = t, p, high
        else:
            red, green, blue = high, p, q
        flat[i], flat[i + 1], flat[i + 2] = red, green, blue
