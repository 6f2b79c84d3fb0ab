"""Regions of a JPEG, by libjpeg-turbo's TurboJPEG 3 API, without the work for the pixels outside.

Rows above a region and columns beside it cost no inverse DCT, no upsampling and no conversion of
colours, rows below it not even Huffman decoding. The library is that in the wheel `pylibjxl`
(extra `turbo`), else the system's; where neither has all functions, or regions differ from
simplejpeg's pixels on a few pictures, pictures are decoded by simplejpeg: the same pixels.

pylibjxl is BSD-licensed, maintained, and contains libjpeg-turbo 3.1, whose functions it exports
(not by promise). `turbojpeg` contains a beta of 3.0 without a licence, `PyTurboJPEG` no library.

The library is called from compiled code, which holds no Python lock (`addresses`). Each picture has
a handle of its own, since a handle keeps the tables of its last picture for a JPEG without tables.
"""

import ctypes
import ctypes.util
import itertools
import logging
import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files

import numpy as np
import simplejpeg
from numba.np.numpy_support import carray

from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import jpeg
from cache_tools.render.addresses import call, pointer
from cache_tools.storage.compiled import njit

log = logging.getLogger("kdcache")
_FUNCTIONS = (
    "Init",
    "Set",
    "DecompressHeader",
    "Get",
    "SetCroppingRegion",
    "Decompress8",
    "Destroy",
)
_INIT, _SET, _HEADER, _GET, _CROP, _DECOMPRESS, _DESTROY = range(len(_FUNCTIONS))
_TO_DECOMPRESS, _SAVE_MARKERS = 1, 25
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLOR_SPACE = 4, 5, 6, 8
_RGB, _GRAY = 0, 2
"""Pixel format, and the last of the colour spaces RGB, YCbCr and grey."""
_MCU_WIDTH = (8, 16, 16, 8, 8, 32)
"""Columns of a unit of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0 and 4:1:1."""
_BESIDE = (0, 1, 1, 0, 0, 1)
"""Columns about a region that may differ: of shared colours, which are blended with the next."""
_NARROWEST = 16
"""Columns that are decoded at least: of one value of colour, libjpeg blends what is not there."""
_LOOKING = threading.Lock()


def region(
    calls_F: I8, data: U1, top: int, left: int, height: int, width: int, room: U1
) -> tuple[int, int]:
    """Decode a region of a JPEG in memory; arguments as those of `region_at`, and the JPEG.

    Returns:
        Rows and columns of the picture in `room`, of which those of the region are valid; 0, 0 if
        it must be decoded as a whole.
    """
    sides = region_at(calls_F, data.ctypes.data, data.size, top, left, height, width, room)
    return (top + height, sides & 0xFFFFFFFF) if sides else (0, 0)


@njit(nogil=True, cache=True)
def region_at(
    calls_F: I8, address: int, size: int, top: int, left: int, height: int, width: int, room: U1
) -> int:
    """Decode a region of a JPEG that was decoded as a whole before, at its place in the picture.

    Args:
        calls_F: `functions()`.
        address: Where the JPEG is.
        size: Its bytes.
        top: First row of the region, in pixels.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        room: Memory for the picture down to the last row of the region.

    Returns:
        Rows · 2³² + columns of the whole picture, by its header; 0 if it must be decoded as a
        whole: it is damaged, or not of one scan that is coded by Huffman.
    """
    data = carray(pointer(address), (size,), np.uint8)
    if not jpeg.is_sequential(data):
        return 0
    handle = call(calls_F[_INIT], (np.int32(_TO_DECOMPRESS),))
    if not handle:
        return 0
    # no ICC profile; 3.0 has no such parameter, and no copy of profiles
    call(calls_F[_SET], (handle, np.int32(_SAVE_MARKERS), np.int32(0)))
    sides = _decode(calls_F, handle, data, top, left, height, width, room)
    call(calls_F[_DESTROY], (handle,))
    return sides


@njit(nogil=True, cache=True)
def _decode(
    calls_F: I8, handle: int, data: U1, top: int, left: int, height: int, width: int, room: U1
) -> int:
    """Decode; returns what `region_at` does."""
    address, size = data.ctypes.data, np.int64(data.size)
    if np.int32(call(calls_F[_HEADER], (handle, address, size))) != 0:
        return 0
    rows = int(np.int32(call(calls_F[_GET], (handle, np.int32(_HEIGHT)))))
    columns = int(np.int32(call(calls_F[_GET], (handle, np.int32(_WIDTH)))))
    kind = int(np.int32(call(calls_F[_GET], (handle, np.int32(_SUBSAMPLING)))))
    colors = int(np.int32(call(calls_F[_GET], (handle, np.int32(_COLOR_SPACE)))))
    bottom, right = top + height, left + width
    inside = 0 <= top < bottom <= rows and 0 <= left < right <= columns
    known = 0 <= kind < len(_MCU_WIDTH) and 0 <= colors <= _GRAY
    if not inside or not known or 3 * bottom * columns > room.size:
        return 0
    beside = _BESIDE[kind]
    x = max(min(left - beside, columns - _NARROWEST), 0) // _MCU_WIDTH[kind] * _MCU_WIDTH[kind]
    w = min(max(right + beside, x + _NARROWEST), columns) - x
    # on 64-bit Linux and macOS a struct of four ints is passed by value as two words
    crop = (handle, np.int64(x | top << 32), np.int64(w | height << 32))
    to, pitch = room.ctypes.data + 3 * (top * columns + x), np.int32(3 * columns)
    target = (handle, address, size, to, pitch, np.int32(_RGB))
    if np.int32(call(calls_F[_CROP], crop)) != 0:
        return 0
    return 0 if np.int32(call(calls_F[_DECOMPRESS], target)) != 0 else rows << 32 | columns


def functions() -> I8:
    """Return the addresses of TurboJPEG 3's functions, or none, which is logged once."""
    with _LOOKING:
        return _found()


@cache
def _found() -> I8:
    """Return the addresses of the functions of the first library that has all, and our pixels."""
    for path in _places():
        try:
            loaded = ctypes.CDLL(path)
            pointers = [ctypes.cast(loaded[f"tj3{name}"], ctypes.c_void_p) for name in _FUNCTIONS]
        except (OSError, AttributeError):
            continue
        calls_F = np.array([pointer.value for pointer in pointers], np.int64)
        if _agrees(calls_F):
            return calls_F
        log.warning("%s is not used: its pixels are not those of simplejpeg", path)
    log.info(
        "JPEGs are decoded by simplejpeg, with the columns beside a crop and the rows above it: "
        "there is no TurboJPEG 3 in the wheel pylibjxl (pip install 'kdcache[turbo]') or in the "
        "system. Pixels are the same."
    )
    return np.empty(0, np.int64)


def _places() -> Iterator[str]:
    """Return files that may be the library: that of the wheel, then the system's."""
    try:
        packed = files("pylibjxl") or []
    except PackageNotFoundError:
        packed = []
    yield from (str(file.locate()) for file in packed if file.name.startswith("_pylibjxl"))
    if system := ctypes.util.find_library("turbojpeg"):
        yield system


def _agrees(calls_F: I8) -> bool:
    """Compare regions of a small picture in each subsampling with simplejpeg's pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    for name in ("444", "422", "420", "440", "411"):
        data = simplejpeg.encode_jpeg(picture, 90, "RGB", name)
        whole = simplejpeg.decode_jpeg(data, "RGB")
        columns = itertools.product((63, 64, 65, 70), (95, 96, 97, 110))
        rows = itertools.product((47, 48, 49, 55), (58, 63, 64, 65))
        edges = [*zip(columns, rows, strict=True), ((64, 65), (48, 49)), ((159, 160), (95, 96))]
        for (left, right), (top, bottom) in edges:
            room = np.zeros_like(picture)
            box = top, left, bottom - top, right - left
            done = region(calls_F, np.frombuffer(data, np.uint8), *box, room.reshape(-1))
            shown = slice(top, bottom), slice(left, right)
            if not done[1] or (room[shown] != whole[shown]).any():
                return False
    return True
