"""Encoded image → views in compiled code alone, for FFCV's pipeline, which calls no Python.

The same steps as `cache_tools.render.view` with the same kernels, and the same bits:
libjpeg-turbo's accurate DCT (FFCV itself takes the fast one, whose pixels differ), FFCV's
INTER_AREA, flip, operations, erased boxes. Uncertain cases are left to
`cache_tools.render.view`: a view that was not made gets a status, and the renderer makes it there.

Everything about the views comes as arguments, never as closures: numba freezes those into the code
at compile time (or, above a megabyte, keeps a pointer), so that a new epoch would need compiling.
The parts call each other by address (`cfunc`, `addresses`): linked into one another, as numba does
otherwise, all kernels would be optimised again at each level, for three times as long.
Importing this module compiles, for some ten seconds.

Shapes: B views of a batch, N samples, M·N views of an epoch, S pixels a side.
"""

import ctypes
import ctypes.util
from typing import NamedTuple

import numpy as np
from ffcv import libffcv
from numba import cfunc, njit, types
from numpy.typing import NDArray

from cache_tools.data.beton.records import RAW
from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import jpeg, kernels, resample
from cache_tools.render import view as render
from cache_tools.views import draw

DONE, LEFT = 1, 2
"""A view's status: made, or left to `cache_tools.render.view`."""
LIBRARY = ctypes.util.find_library("turbojpeg") or "libturbojpeg.so.0"
"""The library that decodes."""
_TURBOJPEG = ctypes.CDLL(LIBRARY)
_begin, _end = _TURBOJPEG.tjInitDecompress, _TURBOJPEG.tjDestroy
_header, _decompress = _TURBOJPEG.tjDecompressHeader2, _TURBOJPEG.tjDecompress2
_severity = _TURBOJPEG.tjGetErrorCode
_begin.argtypes, _begin.restype = [], ctypes.c_size_t
_end.argtypes, _end.restype = [ctypes.c_size_t], ctypes.c_int
_severity.argtypes, _severity.restype = [ctypes.c_size_t], ctypes.c_int
_header.argtypes = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_ulong, *[ctypes.c_void_p] * 3]
_header.restype = ctypes.c_int
_decompress.argtypes = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p]
_decompress.argtypes += [ctypes.c_int] * 5
_decompress.restype = ctypes.c_int
_RGB, _ACCURATE, _FATAL = 0, 0, 1
_resize = njit(nogil=True)(libffcv.resize_crop)  # OpenCV's INTER_AREA


class Tables(NamedTuple):
    """Arguments of the compiled code: a row per sample, or per view (slot · N + row)."""

    ptr_N: NDArray[np.uint64]
    """Offset of the stored bytes in the file."""
    size_N: NDArray[np.uint64]
    """Number of stored bytes."""
    mode_N: U1
    """JPEG or RAW."""
    height_N: NDArray[np.int32]
    """Of the picture, in pixels."""
    width_N: NDArray[np.int32]
    """Of the picture, in pixels."""
    box_V4: NDArray[np.int32]
    """As in `views.ViewParams`, and so on."""
    filter_V: NDArray[np.int8]
    flip_V: U1
    codes_VL: NDArray[np.int8]
    arguments_VL6: NDArray[np.int32]
    erase_VE8: NDArray[np.int32]
    noise_VE2: NDArray[np.uint64]
    operation_C: I8
    """`kernels.addresses`."""
    fill: U1
    """[3]."""
    scaled: int
    """1 when pictures may be halved as they are decoded."""
    status_V: U1
    """Written: DONE or LEFT."""


_PIXELS = types.uint8[:, :, ::1]
_BYTES, _PICTURE = (types.Array(types.uint8, n, "C", readonly=True) for n in (1, 3))
_TABLES = types.NamedTuple(
    (
        *(types.uint64[::1], types.uint64[::1], types.uint8[::1]),
        *(types.int32[::1], types.int32[::1], types.int32[:, ::1]),
        *(types.int8[::1], types.uint8[::1], types.int8[:, ::1]),
        *(types.int32[:, :, ::1], types.int32[:, :, ::1], types.uint64[:, :, ::1]),
        *(types.int64[::1], types.uint8[::1], types.int64, types.uint8[::1]),
    ),
    Tables,
)
"""The types of all fields of `Tables`, in order."""


@njit(nogil=True)
def _mirror(source: U1, out: U1) -> None:
    """Flip horizontally."""
    rows, columns = source.shape[:2]
    for y in range(rows):
        line, to = source[y].reshape(-1), out[y].reshape(-1)
        for x in range(columns):
            a, b = 3 * x, 3 * (columns - 1 - x)
            to[b], to[b + 1], to[b + 2] = line[a], line[a + 1], line[a + 2]


@cfunc(types.boolean(_PICTURE, types.int64, _TABLES, types.int64, _PIXELS))
def _render(picture: U1, view: int, tables: Tables, scale: int, out: U1) -> bool:
    """`render.render`; False when this view is none of those made here."""
    size, filter_ = out.shape[0], tables.filter_V[view]
    rows, columns = picture.shape[:2]
    top, left, height, width = render.scaled_box(tables.box_V4[view], scale, rows, columns)
    spare = np.empty_like(out)
    flip = tables.flip_V[view] != 0
    if render.in_integers(filter_, height, width, size):
        resample.crop(picture, top, left, height, width, flip, out)
    elif filter_ in (draw.AREA, draw.AREA_1, draw.BOX_1):
        _resize(picture, top, top + height, left, left + width, spare if flip else out)
        if flip:
            _mirror(spare, out)
    else:
        return False  # Pillow's
    codes, arguments = tables.codes_VL[view], tables.arguments_VL6[view]
    if kernels.run(tables.operation_C, codes, arguments, tables.fill, out, spare):
        return False
    kernels.erase_all(out, tables.erase_VE8[view], tables.noise_VE2[view])
    return True


@njit(nogil=True)
def _decode(
    data: U1, height: int, width: int, scale: int, bottom: int, room: U1
) -> tuple[int, int]:
    """Decode a JPEG into `room`; its height and width there, in pixels, 0 where it failed.

    `room` is for `height` by `width` pixels, and a JPEG of another size is not decoded.
    """
    handle = _begin()
    found = np.zeros(3, np.int32)  # width, height, subsampling
    to = found.ctypes.data, found[1:].ctypes.data, found[2:].ctypes.data
    failed = _header(handle, data.ctypes.data, data.size, to[0], to[1], to[2])
    if failed or found[0] != width or found[1] != height:
        _end(handle)
        return 0, 0
    source, rows = data, height
    at = jpeg.height_at(data, bottom) if not scale and bottom + jpeg.BLENDED < height else 0
    if at:
        rows = bottom + jpeg.BLENDED
        source = data.copy()
        source[at], source[at + 1] = rows >> 8, rows & 255
    half = (1 << scale) - 1
    rows, columns = (rows + half) >> scale, (width + half) >> scale
    failed = _decompress(
        handle, source.ctypes.data, source.size, room.ctypes.data, columns, 0, rows, _RGB, _ACCURATE
    )
    if failed and at:  # the rows that are left over are a warning, and after it nothing is wanted
        failed = _severity(handle) == _FATAL
    _end(handle)
    return (0, 0) if failed else (rows, columns)


@njit(nogil=True)
def _inside(box: NDArray[np.int32], height: int, width: int) -> bool:
    """Return True if a box is inside its picture: OpenCV ends the process on one that is not."""
    return (
        box[0] >= 0
        and box[1] >= 0
        and 0 < box[2] <= height - box[0]
        and 0 < box[3] <= width - box[1]
    )


@cfunc(types.void(_BYTES, types.int64, types.int64[::1], _TABLES, types.uint8[:, :, :, ::1]))
def render_all(data: U1, row: int, view_B: I8, tables: Tables, out_BSS3: U1) -> None:
    """Make all views of one picture, decoding it once (once per scale).

    Args:
        data: The stored bytes.
        row: Row of the sample.
        view_B: Rows of its views.
        tables: All about them.
        out_BSS3: [B, S, S, 3], written where the status is DONE.
    """
    raw = tables.mode_N[row] == RAW
    height, width = int(tables.height_N[row]), int(tables.width_N[row])
    bottom, ready = 0, -1
    for view in view_B:
        tables.status_V[view] = LEFT  # it stays so where memory runs out
        bottom = max(bottom, int(tables.box_V4[view, 0]) + int(tables.box_V4[view, 2]))
    room = data if raw else np.empty(3 * height * width, np.uint8)
    picture = room[:0].reshape(0, 0, 3)
    for i in range(view_B.size):
        view = view_B[i]
        box = tables.box_V4[view]
        scale = render.scale_of(out_BSS3.shape[1], box[2], box[3]) if tables.scaled else 0
        if not _inside(box, height, width):
            continue
        if raw and (scale or data.size != 3 * height * width):
            continue
        if scale != ready:
            ready, rows, columns = scale, height, width
            if not raw:
                rows, columns = _decode(data, height, width, scale, bottom, room)
            picture = room[: 3 * rows * columns].reshape(rows, columns, 3)
        if picture.size and _render(picture, view, tables, scale, out_BSS3[i]):
            tables.status_V[view] = DONE
