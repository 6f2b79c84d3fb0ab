"""A view's list of image operations, run in order, and its erased rectangles.

Integer arithmetic only (`color`, `affine`, `filters`), so that a pixel is the same on every
processor; no Python lock is held, so that a thread pool renders in parallel. Operations and
magnitudes come as integers: whoever draws them decides, here nothing is drawn but the noise of an
erased rectangle, which is a function of its key.

Shapes: H, W, 3 = rows, columns, RGB; n operations of 6 arguments.
"""

from typing import Any

import numpy as np
from numba import types

from cache_tools.numerics.array_types import I1, I4, I8, U1, U8
from cache_tools.render import affine, color, filters
from cache_tools.render.addresses import OK, address_of, call
from cache_tools.storage.compiled import njit
from cache_tools.views import ops

CONSTANT = 0
NOISE = 1
FAILED = 256
"""Returned by `run` after an exception in an operation: there was no memory."""

_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _16, _32 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32)
_LIMB = np.uint64(0xFFFF)
PIXELS = types.uint8[:, :, ::1]
"""numba's type of [H, W, 3] pixels."""
_IN_PLACE = (ops.AUTOCONTRAST, ops.EQUALIZE, ops.INVERT, ops.GRAYSCALE)
_BY_MAGNITUDE = (
    *(ops.POSTERIZE, ops.SOLARIZE, ops.SOLARIZE_ADD, ops.COLOR, ops.CONTRAST, ops.BRIGHTNESS),
    ops.HUE,
)
_FUNCTIONS: dict[int, Any] = {
    ops.AUTOCONTRAST: color.autocontrast,
    ops.EQUALIZE: color.equalize,
    ops.INVERT: color.invert,
    ops.GRAYSCALE: color.grayscale,
    ops.POSTERIZE: color.posterize,
    ops.SOLARIZE: color.solarize,
    ops.SOLARIZE_ADD: color.solarize_add,
    ops.COLOR: color.color,
    ops.CONTRAST: color.contrast,
    ops.BRIGHTNESS: color.brightness,
    ops.HUE: color.hue,
    ops.SHARPNESS: filters.sharpness,
    ops.BLUR: filters.blur,
    ops.AFFINE_BILINEAR: affine.affine,
    ops.AFFINE_BICUBIC: affine.affine,
    ops.AFFINE_NEAREST: affine.nearest,
}
_ADDRESS_C = np.zeros(len(ops.NAMES), np.int64)


def apply(codes_n: I1, arguments_n6: I4, fill: U1, image: U1, scratch: U1) -> None:
    """Run operations in order; arguments as those of `run`.

    Raises:
        ValueError: There is no operation of such a number.
        MemoryError: There was no memory for one.
    """
    left = run(addresses(codes_n), codes_n, arguments_n6, fill, image, scratch)
    if left == FAILED:
        raise MemoryError("there was no memory for an image operation")
    if left:
        raise ValueError(f"there is no operation {left}")


@njit(nogil=True, cache=True)
def run(address_C: I8, codes_n: I1, arguments_n6: I4, fill: U1, image: U1, scratch: U1) -> int:
    """Run operations in order.

    Args:
        address_C: `addresses`.
        codes_n: The operations, numbered as in `ops`.
        arguments_n6: Their magnitudes; an operation of one argument has it first.
        fill: [3], the colour outside of a mapped picture.
        image: [H, W, 3] pixels, replaced by the result; contiguous.
        scratch: [H, W, 3], overwritten; contiguous.

    Returns:
        The first of the numbers that is no operation's, before which it stops, or FAILED; 0 = all
        are run.
    """
    for k in range(codes_n.size):
        code, by = int(codes_n[k]), np.int64(arguments_n6[k, 0])
        if code == ops.NOTHING:
            continue
        if not 0 < code < address_C.size or not address_C[code]:
            return code
        if code in _IN_PLACE:
            done = call(address_C[code], (image,))
        elif code in _BY_MAGNITUDE:
            done = call(address_C[code], (image, by))
        elif code == ops.BLUR:
            done = call(address_C[code], (image, by, scratch))
        else:
            before, after = image.reshape(-1), scratch.reshape(-1)
            for i in range(before.size):  # a slice compiles for seconds
                after[i] = before[i]
            matrix = arguments_n6[k].astype(np.int64)
            if code == ops.SHARPNESS:
                done = call(address_C[code], (scratch, by, image))
            elif code == ops.AFFINE_NEAREST:
                done = call(address_C[code], (scratch, matrix, fill, image))
            else:
                bicubic = code == ops.AFFINE_BICUBIC
                done = call(address_C[code], (scratch, matrix, fill, image, bicubic))
        if done != OK:
            return FAILED
    return 0


def addresses(codes: I1) -> I8:
    """Addresses of the operations of some numbers, compiled on request; 0 = there is none."""
    for code in np.flatnonzero(np.bincount(codes.reshape(-1).view(np.uint8))).tolist():
        if code in _FUNCTIONS and not _ADDRESS_C[code]:
            _ADDRESS_C[code] = address_of(_FUNCTIONS[code], *_arguments(code))
    return _ADDRESS_C


def _arguments(code: int) -> tuple[Any, ...]:
    """Types of what `run` calls an operation with."""
    if code in _IN_PLACE:
        return (PIXELS,)
    if code in _BY_MAGNITUDE:
        return PIXELS, types.int64
    if code == ops.BLUR:
        return PIXELS, types.int64, PIXELS
    if code == ops.SHARPNESS:
        return PIXELS, types.int64, PIXELS
    mapped = PIXELS, types.int64[::1], types.uint8[::1], PIXELS
    return mapped if code == ops.AFFINE_NEAREST else (*mapped, types.boolean)


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
def erase_all(out: U1, erase_E8: I4, noise_E2: U8) -> None:
    """Fill the erased boxes of a view [S, S, 3] in order, as `ViewParams` has them."""
    for k in range(erase_E8.shape[0]):
        box = erase_E8[k].astype(np.int64)
        if box[2]:
            key, color = noise_E2[k], box[5:].astype(np.uint8)
            erase(out, box[0], box[1], box[2], box[3], box[4], color, key[0], key[1])


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
