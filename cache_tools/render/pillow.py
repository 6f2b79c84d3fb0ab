"""Images of all formats but plain JPEG, opened and converted to RGB by Pillow.

Pillow's plugins are called directly, not by `Image.open`: that one also tries formats that run
other programs, and compares sizes with a global limit of its own. Decoding runs in many threads,
so nothing here saves and restores global state (`warnings.catch_warnings` would).
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from cache_tools.numerics.array_types import U1
from cache_tools.render import png

_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile], int], ...] = (
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile, 0),
    (png.SIGNATURE, PngImagePlugin.PngImageFile, 0),
    (rb"RIFF.{4}WEBP", WebPImagePlugin.WebPImageFile, 9),
    (rb".{4}ftypavi[fs]", AvifImagePlugin.AvifImageFile, 13),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile, 2),
    (rb"BM", BmpImagePlugin.BmpImageFile, 1),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile, 9),
    (rb"P[1-6]\s", PpmImagePlugin.PpmImageFile, 0),
)
"""First bytes of each format (a regular expression), the plug-in that reads it, and the bytes of
memory that it takes for a pixel beside Pillow's image (1, 2 or 4) and the picture (3)."""
_BAND = 2**18
"""Pixels that are converted at a time."""
_PILLOW_WARNS = r"PIL\."
_SILENCE: tuple[object, ...] = ("ignore", None, Warning, re.compile(_PILLOW_WARNS), 0)
_FILTERS = threading.Lock()


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image with the plugin of its first bytes; no pixel is decoded yet."""
    if not data:
        raise ValueError("it is empty")
    for beginning, plugin, _ in _PLUGINS:
        if re.match(beginning, data, re.DOTALL):
            _silence()
            with plugin(io.BytesIO(data)) as image:
                yield image
            return
    raise ValueError(
        f"it begins with {data[:16]!r} and is no JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM"
    )


def bytes_per_pixel(image: Image.Image) -> int:
    """Bytes of memory for a pixel beside Pillow's image and the picture, by the format."""
    return next(own for _, kind, own in _PLUGINS if isinstance(image, kind))


def _silence() -> None:
    """Keep Pillow from warning of odd metadata, and of sizes between its own limit and ours.

    The warning filters belong to the process. This one is put in front once and stays: a filter
    that one thread takes away is missed by another. It also means that an image decodes, or does
    not, under any filters a program has set.
    """
    with _FILTERS:
        if [*warnings.filters[:1]] != [_SILENCE]:
            warnings.filterwarnings("ignore", module=_PILLOW_WARNS)


def rgb(image: Image.Image) -> U1:
    """Convert an opened image to 8-bit RGB, without alpha, in bands: copies of it are small."""
    image.load()
    # Else converting would look for a colour that stands for "transparent" in the new mode.
    image.info.pop("transparency", None)
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.mode in ("I", "F") and not deep:
        raise ValueError("its pixels are numbers of 32 bits of unknown range")
    picture = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(_BAND // image.width, 1)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if deep:  # convert() would clip at 255
            picture[top : top + rows] = (np.asarray(band) >> 8).astype(np.uint8)[:, :, None]
            continue
        rgba = band.convert("RGBA") if band.mode in ("P", "PA", "LA") else band
        picture[top : top + rows] = np.asarray(rgba.convert("RGB"))
    return picture


def last_row(image: Image.Image) -> NDArray[np.generic]:
    """Pixels of the last row."""
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))
