"""Regions of a JPEG, by libjpeg-turbo's TurboJPEG 3 API, without the work for the pixels outside.

Rows above a region and columns beside it cost no inverse DCT, no upsampling and no conversion of
colours, rows below it not even Huffman decoding. The library is that in the wheel `pylibjxl`
(extra `turbo`), which is the one on PyPI that exports the API of a current release, or the
system's, if its pixels are those of simplejpeg on a few pictures. Where there is none, pictures are
decoded by simplejpeg: the same pixels.

The library is called from compiled code, which holds no Python lock. Addresses are arguments of
that code, so that it can be kept on disk. A handle belongs to one thread. After a fork the child
has a copy of the handle of the thread that forked, in its own memory.
"""

import ctypes
import ctypes.util
import logging
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import numpy as np
import simplejpeg
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import jpeg
from cache_tools.storage.compiled import njit

log = logging.getLogger("kdcache")
_FUNCTIONS = ("DecompressHeader", "Get", "SetCroppingRegion", "Decompress8")
_HEADER, _GET, _CROP, _DECOMPRESS, _HANDLE = range(5)
_TO_DECOMPRESS, _SAVE_MARKERS = 1, 25
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLOR_SPACE = 4, 5, 6, 8
_RGB, _GRAY = 0, 2
"""Pixel format, and the last of the colour spaces RGB, YCbCr and grey."""
_MCU_WIDTH, _MCU_HEIGHT = (8, 16, 16, 8, 8, 32), (8, 8, 16, 8, 16, 8)
"""Pixels of a unit of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0 and 4:1:1."""
_BESIDE = 4
"""Columns about a region that may differ: colours are blended with those of the next two."""


class Decoder:
    """A handle of the library, for one thread."""

    def __init__(self) -> None:
        self._library = library()
        self.calls_F = np.zeros(len(_FUNCTIONS) + 1, np.int64)
        """Addresses of the functions, and the handle; zeros where there is no library."""
        if self._library is not None:
            self.calls_F[:] = _open(self._library)

    def __bool__(self) -> bool:
        return self._library is not None

    def __del__(self) -> None:
        if self._library is not None:
            self._library.tj3Destroy(int(self.calls_F[_HANDLE]))


@intrinsic
def _c_function(_: Any, address: Any, arguments: Any) -> Any:
    """Call the C function at an address with integers, a tuple; it returns an int."""

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        unpack: Any = cgutils.unpack_tuple
        unpacked = unpack(builder, values[1])
        kind = ir.FunctionType(ir.IntType(32), [value.type for value in unpacked])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), unpacked)

    return types.int32(address, arguments), generate


_call: Any = _c_function


@njit(nogil=True, cache=True)
def region(
    calls_F: I8, data: U1, top: int, left: int, height: int, width: int, room: U1
) -> tuple[int, int]:
    """Decode a region of a JPEG that was decoded as a whole before, at its place in the picture.

    Args:
        calls_F: Those of a `Decoder` of this thread.
        data: The JPEG.
        top: First row of the region, in pixels.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        room: Memory for the picture down to the last row of the region.

    Returns:
        Rows and columns of the picture in `room`, of which those of the region are valid; 0, 0 if
        it must be decoded as a whole: it is damaged, or not of one scan that is coded by Huffman.
    """
    handle, address, size = calls_F[_HANDLE], data.ctypes.data, np.int64(data.size)
    if not handle or not jpeg.is_sequential(data):
        return 0, 0
    if _call(calls_F[_HEADER], (handle, address, size)) != 0:
        return 0, 0
    rows = _call(calls_F[_GET], (handle, np.int32(_HEIGHT)))
    columns = _call(calls_F[_GET], (handle, np.int32(_WIDTH)))
    kind = _call(calls_F[_GET], (handle, np.int32(_SUBSAMPLING)))
    colors = _call(calls_F[_GET], (handle, np.int32(_COLOR_SPACE)))
    bottom, right = top + height, left + width
    inside = 0 <= top < bottom <= rows and 0 <= left < right <= columns
    known = 0 <= kind < len(_MCU_WIDTH) and colors <= _GRAY
    if not inside or not known or 3 * bottom * columns > room.size:
        return 0, 0
    x = max(left - _BESIDE, 0) // _MCU_WIDTH[kind] * _MCU_WIDTH[kind]
    y = top // _MCU_HEIGHT[kind] * _MCU_HEIGHT[kind]
    w, h = min(right + _BESIDE, columns) - x, bottom - y
    # a struct of four ints is passed by value as two words
    crop = (handle, np.int64(x | y << 32), np.int64(w | h << 32))
    to, pitch = room.ctypes.data + 3 * (y * columns + x), np.int32(3 * columns)
    target = (handle, address, size, to, pitch, np.int32(_RGB))
    if _call(calls_F[_CROP], crop) != 0 or _call(calls_F[_DECOMPRESS], target) != 0:
        return 0, 0
    return bottom, columns


@cache
def library() -> ctypes.CDLL | None:
    """Load TurboJPEG 3, or None; logs once that there is none."""
    for path in _places():
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        if hasattr(found, "tj3SetCroppingRegion"):
            found.tj3Init.argtypes, found.tj3Init.restype = [ctypes.c_int], ctypes.c_void_p
            found.tj3Destroy.argtypes, found.tj3Destroy.restype = [ctypes.c_void_p], None
            found.tj3Set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
            if _agrees(found):
                return found
            log.warning("%s is not used: its pixels are not those of simplejpeg", path)
    log.info(
        "JPEGs are decoded by simplejpeg, with the columns beside a crop and the rows above it: "
        "there is no TurboJPEG 3 (pip install 'kdcache[turbo]'). Pixels are the same."
    )
    return None


def _places() -> Iterator[str]:
    """Return files that may be the library: that of the wheel, then the system's."""
    try:
        packed = files("pylibjxl") or []
    except PackageNotFoundError:
        packed = []
    yield from (str(file.locate()) for file in packed if file.name.startswith("_pylibjxl"))
    if system := ctypes.util.find_library("turbojpeg"):
        yield system


def _open(loaded: ctypes.CDLL) -> I8:
    """Return the addresses of the functions and a new handle."""
    handle = loaded.tj3Init(_TO_DECOMPRESS)
    if not handle:
        raise MemoryError("tj3Init")
    loaded.tj3Set(handle, _SAVE_MARKERS, 0)  # no ICC profile; 3.0 has no such parameter
    pointers = [ctypes.cast(loaded[f"tj3{name}"], ctypes.c_void_p) for name in _FUNCTIONS]
    return np.array([*(pointer.value for pointer in pointers), handle], np.int64)


def _agrees(loaded: ctypes.CDLL) -> bool:
    """Compare regions of a small picture in each subsampling with simplejpeg's pixels."""
    calls_F = _open(loaded)
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    agree = []
    for name in ("444", "422", "420", "440", "411"):
        data = simplejpeg.encode_jpeg(picture, 90, "RGB", name)
        room = np.zeros_like(picture)
        done = region(calls_F, np.frombuffer(data, np.uint8), 50, 70, 9, 40, room.reshape(-1))
        whole = simplejpeg.decode_jpeg(data, "RGB")
        agree.append(done[1] and (room[50:59, 70:110] == whole[50:59, 70:110]).all())
    loaded.tj3Destroy(int(calls_F[_HANDLE]))
    return all(agree)
