"""Colour operations on uint8 pixels: a pixel depends on itself and on its picture's histogram.

Integer arithmetic only, so that a pixel is the same on every processor, and in place. They mean
what Pillow's ImageOps and ImageEnhance and torchvision's `adjust_hue` mean, to the bit but for the
blends (brightness, contrast, color) and the hue: these are within 1 of 255, and not equal where
Pillow's single precision crosses an integer. What is not a look-up is in 32 bits and without
branches, so that the vector unit does it.

Shapes: H, W, 3 = rows, columns, RGB; contiguous.
"""

import numpy as np

from cache_tools.numerics.array_types import I8, U1
from cache_tools.render.addresses import OK
from cache_tools.storage.compiled import njit

# Where a hue is exactly j/255, Pillow's single precision decides between j and j - 1; everywhere
# else its rounding cannot matter. Bit j of this number is set where it says j - 1.
_HUE_DOWN = 0x2222223232222222AAAAA000001111100000000000000FFFFFFFE
_HUE_DOWN_256 = np.array([_HUE_DOWN >> j & 1 for j in range(256)], dtype=np.int64)


@njit(nogil=True, cache=True, error_model="numpy")
def _map(image: U1, tables: U1) -> None:
    """Replace every value v of channel c by tables[c, v]."""
    flat = image.reshape(-1)
    of_red, of_green, of_blue = tables[0], tables[1], tables[2]
    for p in range(flat.size // 3):
        red, green, blue = flat[3 * p], flat[3 * p + 1], flat[3 * p + 2]
        flat[3 * p] = of_red[red]
        flat[3 * p + 1] = of_green[green]
        flat[3 * p + 2] = of_blue[blue]


@njit(nogil=True, cache=True, error_model="numpy")
def _histogram(image: U1) -> I8:
    """Count the 256 values of each channel: [3, 256]."""
    counts = np.zeros((3, 256), np.int64)
    flat = image.reshape(-1)
    reds, greens, blues = counts[0], counts[1], counts[2]
    for p in range(flat.size // 3):
        reds[flat[3 * p]] += 1
        greens[flat[3 * p + 1]] += 1
        blues[flat[3 * p + 2]] += 1
    return counts


@njit(nogil=True, cache=True, error_model="numpy")
def _clip(value: np.int32) -> np.uint8:
    """Clip to 0…255."""
    return np.uint8(min(max(value, np.int32(0)), np.int32(255)))


@njit(nogil=True, cache=True, error_model="numpy")
def _grey(red: np.uint8, green: np.uint8, blue: np.uint8) -> np.int32:
    """Pillow's "L" of a pixel (ITU-R 601)."""
    red_green = np.int32(19595) * np.int32(red) + np.int32(38470) * np.int32(green)
    return (red_green + np.int32(7471) * np.int32(blue) + np.int32(32768)) >> np.int32(16)


@njit(nogil=True, cache=True, error_model="numpy")
def invert(image: U1) -> int:
    """Replace every value v by 255 - v."""
    flat = image.reshape(-1)
    for i in range(flat.size):
        flat[i] = 255 - flat[i]
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def posterize(image: U1, bits: int) -> int:
    """Keep the upper `bits` bits of every value; 8 or more change nothing, 0 leaves black."""
    flat = image.reshape(-1)
    mask = 256 - (1 << (8 - min(max(bits, 0), 8)))
    for i in range(flat.size):
        flat[i] = flat[i] & mask
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def solarize(image: U1, threshold: int) -> int:
    """Invert the values from `threshold` (0 to 256) on."""
    flat, limit = image.reshape(-1), np.int32(threshold)
    for i in range(flat.size):
        value = np.int32(flat[i])
        flat[i] = value if value < limit else 255 - value
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def solarize_add(image: U1, add: int) -> int:
    """Add `add` to the values below 128, up to 255."""
    flat, more, limit = image.reshape(-1), np.int32(add), np.int32(128)
    for i in range(flat.size):
        value = np.int32(flat[i])
        flat[i] = _clip(value + more if value < limit else value)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def _round_53(value: int) -> int:
    """Round a non-negative integer of up to 62 bits to 53 significant ones, half to even."""
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
def _stretch(low: int, high: int, table: U1) -> None:
    """Write Pillow's table that takes low…high to 0…255; where these are one, nothing changes.

    The exact 255 · (v - low) / (high - low) is not it: where that is an integer, Pillow's double
    precision can fall one short. So its three roundings are made here, on 53-bit integers.
    """
    if low >= high:
        table[:] = np.arange(256)
        return
    exponent = 52
    while 255 << exponent >= (high - low) << 53:
        exponent -= 1
    scale, rest = (255 << exponent) // (high - low), (255 << exponent) % (high - low)
    if 2 * rest > high - low or (2 * rest == high - low and scale & 1):
        scale += 1
    offset = _round_53(low * scale)
    for v in range(256):
        level = _round_53(max(_round_53(max(v, low) * scale) - offset, 0)) >> exponent
        table[v] = min(level, 255)


@njit(nogil=True, cache=True, error_model="numpy")
def _extremes(image: U1) -> tuple[I8, I8]:
    """Find the lowest and the highest value of each channel."""
    flat = image.reshape(-1)
    low_red = low_green = low_blue = np.uint8(255)
    high_red = high_green = high_blue = np.uint8(0)
    for p in range(flat.size // 3):
        red, green, blue = flat[3 * p], flat[3 * p + 1], flat[3 * p + 2]
        low_red, high_red = min(low_red, red), max(high_red, red)
        low_green, high_green = min(low_green, green), max(high_green, green)
        low_blue, high_blue = min(low_blue, blue), max(high_blue, blue)
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    low[0], low[1], low[2] = low_red, low_green, low_blue
    high[0], high[1], high[2] = high_red, high_green, high_blue
    return low, high


@njit(nogil=True, cache=True, error_model="numpy")
def autocontrast(image: U1) -> int:
    """Stretch every channel to 0…255; a channel of one value stays."""
    low, high = _extremes(image)
    tables = np.empty((3, 256), np.uint8)
    for channel in range(3):
        _stretch(int(low[channel]), int(high[channel]), tables[channel])
    _map(image, tables)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def equalize(image: U1) -> int:
    """Make every channel's histogram as even as Pillow does; a channel of one value stays."""
    tables = np.empty((3, 256), np.uint8)
    pixels = image.shape[0] * image.shape[1]
    for channel, counts in enumerate(_histogram(image)):
        high = 255
        while counts[high] == 0:
            high -= 1
        step = (pixels - counts[high]) // 255
        below = step // 2
        for v in range(256):
            tables[channel, v] = min(below // step, 255) if step else v
            below += counts[v]
    _map(image, tables)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def grayscale(image: U1) -> int:
    """Give the three channels Pillow's "L"."""
    flat = image.reshape(-1)
    for p in range(flat.size // 3):
        grey = np.uint8(_grey(flat[3 * p], flat[3 * p + 1], flat[3 * p + 2]))
        flat[3 * p] = grey
        flat[3 * p + 1] = grey
        flat[3 * p + 2] = grey
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def _blend(image: U1, level: int, factor: int) -> None:
    """Blend from one grey level, rounding towards zero."""
    flat, slope = image.reshape(-1), np.int32(factor)
    origin = np.int32(level * (65536 - factor))
    for i in range(flat.size):
        flat[i] = _clip((origin + np.int32(flat[i]) * slope) >> np.int32(16))


@njit(nogil=True, cache=True, error_model="numpy")
def brightness(image: U1, factor: int) -> int:
    """Blend from black; `factor` in 1/65536 and up to 64, at 65536 nothing changes."""
    _blend(image, 0, factor)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def contrast(image: U1, factor: int) -> int:
    """Blend from the picture's mean grey; `factor` as for `brightness`."""
    total = 0
    for y in range(image.shape[0]):
        line, of_line = image[y].reshape(-1), np.int32(0)
        for x in range(image.shape[1]):
            of_line += _grey(line[3 * x], line[3 * x + 1], line[3 * x + 2])
        total += int(of_line)
    pixels = image.shape[0] * image.shape[1]
    _blend(image, (2 * total + pixels) // (2 * pixels), factor)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def color(image: U1, factor: int) -> int:
    """Blend from the grey picture; `factor` as for `brightness`."""
    flat, slope = image.reshape(-1), np.int32(factor)
    for p in range(flat.size // 3):
        red, green, blue = flat[3 * p], flat[3 * p + 1], flat[3 * p + 2]
        grey = _grey(red, green, blue)
        flat[3 * p] = _from(grey, red, slope)
        flat[3 * p + 1] = _from(grey, green, slope)
        flat[3 * p + 2] = _from(grey, blue, slope)
    return OK


@njit(nogil=True, cache=True, error_model="numpy")
def _from(grey: np.int32, value: np.uint8, slope: np.int32) -> np.uint8:
    """Blend a value from a grey, rounding towards zero."""
    return _clip(grey + ((np.int32(value) - grey) * slope >> np.int32(16)))


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
def hue(image: U1, shift: int) -> int:
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
    return OK
