"""JPEGs of all kinds, encoded with TurboJPEG and Pillow."""

import ctypes
import io
from typing import Any

import numpy as np
from PIL import Image
from skimage.data import astronaut

from cache_tools.numerics.array_types import U1
from cache_tools.render import turbojpeg

PHOTO: U1 = astronaut()
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2, "gray": 3, "440": 4, "411": 5, "441": 6}
OPTIONS: dict[str, dict[int, int]] = {
    "plain": {},
    "optimized": {11: 1},
    "restarts every 3 units": {18: 3},
    "restarts every row": {19: 1},
    "progressive": {12: 1},
    "arithmetic": {14: 1},
}
EXIF = Image.Exif()
EXIF[274] = 6
SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "rgb": ("RGB", {"keep_rgb": True}),
    "cmyk": ("CMYK", {}),
    "exif": ("RGB", {"exif": EXIF}),
    "icc": ("RGB", {"icc_profile": bytes(70_000)}),
    "comment": ("RGB", {"comment": b"\xff\xda\xff\xd9" * 9}),
}
WHOLE = ("progressive", "arithmetic", "441", "cmyk")
"""Kinds of which no regions are decoded."""
KINDS = [f"{s}, {o}" for s in SUBSAMPLINGS for o in OPTIONS]
KINDS += [*SAVED, "stray bytes", "bytes after the end", "one channel of 2×2"]


def compressed(picture: U1, quality: int, subsampling: int, options: dict[int, int]) -> bytes:
    """Encode with the library itself, which has kinds that Pillow has not."""
    library = ctypes.CDLL(next(iter(turbojpeg._places())))
    library.tj3Init.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tj3Init(0))
    for name, value in {3: quality, 4: subsampling, **options}.items():
        assert library.tj3Set(handle, name, value) == 0
    out, size = ctypes.c_void_p(), ctypes.c_size_t()
    height, width = picture.shape[:2]
    pixels = np.ascontiguousarray(picture).ctypes.data_as(ctypes.c_void_p)
    to = ctypes.byref(out), ctypes.byref(size)
    assert library.tj3Compress8(handle, pixels, width, 0, height, 0, *to) == 0
    data = ctypes.string_at(out, size.value)
    library.tj3Free(out)
    library.tj3Destroy(handle)
    return data


def saved(picture: U1, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def made(kind: str, picture: U1, quality: int) -> bytes:
    subsampling, _, option = kind.partition(", ")
    if option:
        return compressed(picture, quality, SUBSAMPLINGS[subsampling], OPTIONS[option])
    if kind in SAVED:
        mode, options = SAVED[kind]
        return saved(picture, mode, quality=quality, **options)
    data = saved(picture, quality=quality)
    if kind == "stray bytes":
        return data[:-2] + b"\0\x55" + data[-2:]
    if kind == "bytes after the end":
        return data + data
    grey = bytearray(saved(picture, "L", quality=quality))
    at = grey.index(b"\xff\xc0") + 11
    assert grey[at] == 0x11
    grey[at] = 0x22
    return bytes(grey)


def without_tables(data: bytes) -> bytes:
    """Take the Huffman tables out: such a JPEG has the standard's tables."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += data[at:end] if data[at + 1] != 0xC4 else b""
        at = end
    return kept + data[at:]
