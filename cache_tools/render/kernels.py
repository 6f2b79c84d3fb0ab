"""A view's list of image operations, run in order, and its erased rectangle.

Integer arithmetic only (`color`, `geometry`, `smoothing`), so that a pixel is the same on every
processor; no Python lock is held, so that a thread pool renders in parallel. Operations and
magnitudes come as integers: whoever draws them decides, here nothing is drawn but the noise of an
erased rectangle, which is a function of its key.

Shapes: H, W, 3 = rows, columns, RGB; n operations of 6 arguments.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import affine, color, filters
from cache_tools.storage.compiled import njit
from cache_tools.views import ops

CONSTANT = 0
NOISE = 1

_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _16, _32 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32)
_LIMB = np.uint64(0xFFFF)


def apply(codes_n: Sequence[int], arguments_n6: I8, fill: U1, image: U1, scratch: U1) -> None:
    """Run operations in order.

    The loop is Python's: a compiled one could not be kept on disk, since numba does not see that a
    kernel in another file has changed.

    Args:
        codes_n: The operations, numbered as in `ops`.
        arguments_n6: Their magnitudes; an operation of one argument has it first.
        fill: [3], the colour outside of a mapped picture.
        image: [H, W, 3] pixels, replaced by the result.
        scratch: [H, W, 3], overwritten.
    """
    for code, arguments in zip(codes_n, arguments_n6, strict=True):
        if code in _IN_PLACE:
            _IN_PLACE[code](image)
        elif code in _BY_MAGNITUDE:
            _BY_MAGNITUDE[code](image, int(arguments[0]))
        elif code == ops.SHARPNESS:
            scratch[:] = image
            filters.sharpness(scratch, int(arguments[0]), image)
        elif code == ops.BLUR:
            filters.blur(image, int(arguments[0]), scratch)
        elif code in (ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC):
            scratch[:] = image
            affine.affine(scratch, arguments, fill, image, code == ops.AFFINE_BICUBIC)
        elif code == ops.AFFINE_NEAREST:
            scratch[:] = image
            affine.nearest(scratch, arguments, fill, image)
        elif code != ops.NOTHING:
            raise ValueError(f"there is no operation {code}")


_IN_PLACE: dict[int, Callable[[U1], None]] = {
    ops.AUTOCONTRAST: color.autocontrast,
    ops.EQUALIZE: color.equalize,
    ops.INVERT: color.invert,
    ops.GRAYSCALE: color.grayscale,
}
_BY_MAGNITUDE: dict[int, Callable[[U1, int], None]] = {
    ops.POSTERIZE: color.posterize,
    ops.SOLARIZE: color.solarize,
    ops.SOLARIZE_ADD: color.solarize_add,
    ops.COLOR: color.color,
    ops.CONTRAST: color.contrast,
    ops.BRIGHTNESS: color.brightness,
    ops.HUE: color.hue,
}


@njit(nogil=True, cache=True)
def _high_64(x: np.uint64, m: np.uint64) -> np.uint64:
    """Upper 64 bits of the 128-bit product x·m."""
    cross = (x >> _32) * (m & _LOW) + ((x & _LOW) * (m & _LOW) >> _32)
    middle = (x & _LOW) * (m >> _32) + (cross & _LOW)
    return (x >> _32) * (m >> _32) + (cross >> _32) + (middle >> _32)


@njit(nogil=True, cache=True)
def philox(
    counter: np.uint64, seed0: np.uint64, seed1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """`rng.philox` of the counter (counter, 0, 0, 0) under the key (seed0, seed1)."""
    zero = np.uint64(0)
    c0, c1, c2, c3, k0, k1 = counter, zero, zero, zero, seed0, seed1
    for _ in range(10):
        high0, high1 = _high_64(c0, _M0), _high_64(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, c2 * _M1, high0 ^ c3 ^ k1, c0 * _M0
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@njit(nogil=True, cache=True)
def _normal(word: np.uint64) -> np.int64:
    """Sum a word's four 16-bit limbs and scale to mean 0 and variance 1, in 1/65536."""
    total = np.int64(0)
    for _ in range(4):
        total += np.int64(word & _LIMB)
        word >>= _16
    return (total - 131070) * 113512 >> 16


@njit(nogil=True, cache=True)
def erase(
    out: U1,
    top: int,
    left: int,
    height: int,
    width: int,
    mode: int,
    color3: U1,
    seed0: np.uint64,
    seed1: np.uint64,
) -> None:
    """Fill a rectangle, cut to the picture `out` [H, W, 3], with a colour or with noise about it.

    With NOISE, pixel i of the rectangle, row by row, gets channel c from word c of the Philox block
    i under the key (seed0, seed1), about normal with 58 of 255 as standard deviation.
    """
    for y in range(max(top, 0), min(top + height, out.shape[0])):
        for x in range(max(left, 0), min(left + width, out.shape[1])):
            if mode == NOISE:
                i = np.uint64((y - top) * width + (x - left))
                red, green, blue, _ = philox(i, np.uint64(seed0), np.uint64(seed1))
                out[y, x, 0] = min(max(color3[0] + (58 * _normal(red) >> 16), 0), 255)
                out[y, x, 1] = min(max(color3[1] + (58 * _normal(green) >> 16), 0), 255)
                out[y, x, 2] = min(max(color3[2] + (58 * _normal(blue) >> 16), 0), 255)
            else:
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = color3[0], color3[1], color3[2]
