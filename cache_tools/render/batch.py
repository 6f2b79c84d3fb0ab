"""Views of many JPEGs in one compiled call, which holds no Python lock.

`decode_views` reads, checks, decodes, crops, resizes and flips; `finish_views` runs operations and
erases. They call `turbojpeg.region_at`, `resample.crop` and the operations of `kernels`, as Python
does for `view.render_views`, so pixels are the same. What is not
plain is left for `view.render_views`, and with it every error: another format or several scans, a
picture that is changed, damaged or large, a view that OpenCV or Pillow resizes.

Shapes: P pictures, V views of them, S pixels a side; L, E as in `views.draw`. An address is that of
memory that the caller keeps.
"""

import ctypes
import logging
from functools import cache

import numpy as np
from numba import types
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from cache_tools.numerics.array_types import I1, I4, I8, U1, U8
from cache_tools.render import kernels, resample, turbojpeg
from cache_tools.render import view as render
from cache_tools.render.addresses import OK, address_of, call, pointer
from cache_tools.storage.compiled import njit

log = logging.getLogger("kdcache")
MOST_BYTES, MOST_ROOM, MOST_HELD = 2**22, 2**26, 2**26
"""Bytes of the largest encoded picture, of the largest decoded one down to its last row that a view
shows, and of all encoded ones in memory together, that are not left."""
TODO, DONE, LEFT, ODD = range(4)
"""A picture's status; an odd one is left whatever its views show."""
_REGION, _CROP, _READ, _CRC = range(-4, 0)


@njit(nogil=True, cache=True)
def decode_views(
    calls_F: I8,
    descriptor_P: I8,
    begin_P: I8,
    length_P: I8,
    crc_P: NDArray[np.uint32],
    height_P: I8,
    width_P: I8,
    first_P: I8,
    box_V4: I4,
    filter_V: I1,
    flip_V: NDArray[np.bool_],
    address_V: I8,
    size_V: I8,
    encoded: U1,
    room: U1,
    status_P: U1,
) -> None:
    """Make the views of some pictures, but for their operations and erased boxes.

    Args:
        calls_F: `functions()`.
        descriptor_P: The file of each encoded picture, or -1: it is in memory.
        begin_P: Its first byte in the file, or its address.
        length_P: Its bytes.
        crc_P: Its CRC-32C, which its bytes must have; 0 = they have been checked.
        height_P: Height of the picture in pixels, which its header must have.
        width_P: Its width, likewise.
        first_P: [P + 1], the first view of each picture, and V.
        box_V4: As in `ViewParams`, and so on.
        filter_V: Resampling of each view.
        flip_V: Whether it is flipped.
        address_V: Where the [S, S, 3] pixels of each view go.
        size_V: S of each view.
        encoded: Memory for an encoded picture.
        room: Memory for a decoded one, down to the last row that a view shows.
        status_P: Written where it is TODO.
    """
    for i in range(status_P.size):
        if status_P[i] != TODO:
            continue
        status_P[i] = LEFT
        own = slice(first_P[i], first_P[i + 1])
        top, left, bottom, right = _edges(box_V4[own], filter_V[own], size_V[own])
        length, data = np.int64(length_P[i]), encoded[: length_P[i]]
        if descriptor_P[i] < 0:
            data = carray(pointer(begin_P[i]), (length,), np.uint8)
        elif not bottom or not _read(calls_F, descriptor_P[i], begin_P[i], data, length):
            continue
        if not bottom or (crc_P[i] and _crc(calls_F, data) != crc_P[i]):
            continue
        region = top, left, bottom - top, right - left, room
        sides = call(calls_F[_REGION], (calls_F, np.int64(data.ctypes.data), length, *region))
        if sides != height_P[i] << 32 | width_P[i]:
            status_P[i] = ODD
            continue
        picture = room[: 3 * bottom * width_P[i]].reshape(bottom, width_P[i], 3)
        status_P[i] = DONE
        for v in range(first_P[i], first_P[i + 1]):
            y, x, height, width = box_V4[v]
            out = carray(pointer(address_V[v]), (size_V[v], size_V[v], 3), np.uint8)
            crop = np.int64(y), np.int64(x), np.int64(height), np.int64(width), flip_V[v], out
            if call(calls_F[_CROP], (picture, *crop)) != OK:
                status_P[i] = LEFT


@njit(nogil=True, cache=True)
def bottoms(first_P: I8, box_V4: I4, filter_V: I1, size_V: I8) -> I8:
    """Compute down to which row of each picture its views show it; 0 where one is not made here.

    Arguments as those of `decode_views`.
    """
    bottom_P = np.zeros(first_P.size - 1, np.int64)
    for i in range(bottom_P.size):
        own = slice(first_P[i], first_P[i + 1])
        bottom_P[i] = _edges(box_V4[own], filter_V[own], size_V[own])[2]
    return bottom_P


@njit(nogil=True, cache=True)
def finish_views(
    operation_C: I8,
    address_V: I8,
    size_V: I8,
    codes_VL: I1,
    arguments_VL6: I4,
    fill: U1,
    erase_VE8: I4,
    noise_VE2: U8,
    first_P: I8,
    status_P: U1,
) -> None:
    """Run the operations of views and erase their boxes, where a picture's status is DONE.

    It becomes LEFT where there is no such operation, or no memory for it. Arguments as those of
    `decode_views` and fields of `ViewParams`; `operation_C` is `kernels.addresses`, `fill` [3] the
    colour outside of a mapped picture.
    """
    memory = np.empty(3 * size_V.max() ** 2, np.uint8)
    for i in range(status_P.size):
        for v in range(first_P[i], first_P[i + 1]):
            if status_P[i] != DONE:
                break
            size = size_V[v]
            image = carray(pointer(address_V[v]), (size, size, 3), np.uint8)
            scratch = memory[: 3 * size * size].reshape(size, size, 3)
            codes, arguments = codes_VL[v], arguments_VL6[v]
            if kernels.run(operation_C, codes, arguments, fill, image, scratch):
                status_P[i] = LEFT
            kernels.erase_all(image, erase_VE8[v], noise_VE2[v])


@njit(nogil=True, cache=True)
def _read(calls_F: I8, descriptor: int, begin: int, data: U1, length: np.int64) -> bool:
    """Read a range of a file; False if it is not there."""
    if data.size != length:
        return False
    to = (np.int32(descriptor), data.ctypes.data, length, np.int64(begin))
    return bool(call(calls_F[_READ], to) == length)


@njit(nogil=True, cache=True)
def _crc(calls_F: I8, data: U1) -> np.uint32:
    """Compute the CRC-32C of bytes."""
    return np.uint32(call(calls_F[_CRC], (data.ctypes.data, np.int64(data.size))))


@njit(nogil=True, cache=True)
def _edges(box_B4: I4, filter_B: I1, size_B: I8) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    """Top, left, bottom and right of what views show; nothing where one is not made here."""
    none = np.int64(0)
    for k in range(box_B4.shape[0]):
        height, width = box_B4[k, 2], box_B4[k, 3]
        if min(height, width) <= 0 or not render.in_integers(filter_B[k], height, width, size_B[k]):
            return none, none, none, none
    return render.edges(box_B4)


def functions() -> I8:
    """Return `turbojpeg.functions` and the other addresses that `decode_views` calls; or none."""
    calls_F = turbojpeg.functions()
    others_F = _others() if calls_F.size else calls_F
    return np.concatenate([calls_F, others_F]) if others_F.size else others_F


@cache
def _others() -> I8:
    """Addresses of `region_at`, `crop`, pread and the CRC-32C; none, which is logged, without."""
    try:
        from google_crc32c import _crc32c

        crc = ctypes.CDLL(_crc32c.__file__).crc32c_value
    except (ImportError, OSError, AttributeError) as error:
        log.info(
            "views are rendered one by one and not many in compiled code: google-crc32c has no "
            "crc32c_value in C (%s; pip install --force-reinstall google-crc32c). Pixels are the "
            "same.",
            error,
        )
        return np.empty(0, np.int64)
    integers = (types.int64,) * 4
    region = types.int64[::1], types.int64, types.int64, *integers, types.uint8[::1]
    picture = kernels.PIXELS, *integers, types.boolean, kernels.PIXELS
    ours = address_of(turbojpeg.region_at, *region), address_of(resample.crop, *picture)
    theirs = [ctypes.cast(c, ctypes.c_void_p).value for c in (ctypes.CDLL(None).pread, crc)]
    return np.array([*ours, *theirs], np.int64)
