"""Encoded image → uint8 RGB pixels, or a `DataError` that names the sample. Nothing between.

FORMAT.md, section 3.4, defines the treatment of every odd kind of image. JPEG is decoded by
libjpeg-turbo with the accurate DCT and fancy upsampling (Pillow, OpenCV and torchvision give the
same bits), everything else by Pillow. libjpeg fills what a broken file lacks with grey and only
warns; `simplejpeg` makes an error of the warning, Pillow does not, so that as few JPEG as possible
go through Pillow.

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
from typing import Any

import cv2
import numpy as np
import simplejpeg
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

from cache_tools.errors import DataError
from cache_tools.file_contents import HEAD, describe
from cache_tools.render import jpeg, png

U1 = NDArray[np.uint8]
MAX_PIXELS = 2**28
"""An image of more pixels than this is refused before it is decoded."""

_JPEG = b"\xff\xd8\xff"
_PLAIN = ("RGB", "YCbCr", "Gray")
_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (_JPEG, JpegImagePlugin.JpegImageFile),
    (png.SIGNATURE, PngImagePlugin.PngImageFile),
    (rb"RIFF.{4}WEBP", WebPImagePlugin.WebPImageFile),
    (rb".{4}ftypavi[fs]", AvifImagePlugin.AvifImageFile),
    (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
    (rb"P[1-6]\s", PpmImagePlugin.PpmImageFile),
)
"""First bytes of each format (a regular expression), and the plug-in that reads it."""

# The padding some cameras leave: all pixels were decoded when libjpeg met these bytes.
_HARMLESS = re.compile(r": \d{1,2} extraneous bytes before marker 0xd9")

_LEFT_OVER = re.compile(r": \d+ extraneous bytes before marker 0xd9")

_PILLOW_WARNS = r"PIL\."
_SILENCE: tuple[object, ...] = ("ignore", None, Warning, re.compile(_PILLOW_WARNS), 0)
_FILTERS = threading.Lock()


def size(data: bytes, key: str) -> tuple[int, int]:
    """Height and width of an encoded image in pixels, read from its header.

    Raises:
        DataError: Not an image, or one of absurd size; `key` names it.
    """
    with _naming(key, data):
        return _header(data)[:2]


def is_plain_jpeg(data: bytes) -> bool:
    """Check that TurboJPEG decodes an image to RGB: no CMYK, no other format."""
    return _header(data)[2] in _PLAIN


class DecodeBuffer(threading.local):
    """A place to decode into, one per thread: new memory costs a fifth of a decode.

    A picture decoded into it is overwritten by the next one of the same thread.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def room(self, count: int) -> U1:
        """At least `count` bytes."""
        if self._memory.size < count:
            self._memory = np.empty(count, dtype=np.uint8)
        return self._memory


def decode(
    data: bytes,
    key: str,
    reuse: DecodeBuffer | None = None,
    scale_log2: int = 0,
    rows: int | None = None,
) -> U1:
    """Decode an image to [H, W, 3] RGB.

    Args:
        data: The encoded image.
        key: Name of the sample, for messages.
        reuse: Where to decode to; None makes new memory.
        scale_log2: Decode at 1/2, 1/4 or 1/8 (1, 2, 3): [ceil(H / 2^scale_log2), …]. libjpeg makes
            fewer pixels of a JPEG's blocks; other formats are shrunk by INTER_AREA.
        rows: Only so many rows are wanted; there may be more, or all. Damage further down goes
            unseen, so this is for bytes that were decoded as a whole before.

    Raises:
        DataError: Not an image, one of absurd size or a broken one; `key` names it.
    """
    with _naming(key, data):
        height, width, color_space = _header(data)
        if rows is not None and color_space in _PLAIN and not scale_log2:
            beginning = _first_rows(data, rows, width, reuse or DecodeBuffer())
            if beginning is not None:
                return beginning
        if color_space in _PLAIN:
            small = -(-height >> scale_log2), -(-width >> scale_log2)
            buffer = None if reuse is None else reuse.room(3 * small[0] * small[1])
            picture = _jpeg(data, "RGB", buffer, *(small if scale_log2 else (0, 0)))
            height, width = small
        else:
            if color_space:  # CMYK or YCCK: Pillow makes RGB of it, but would not notice damage
                _jpeg(data, "CMYK")
            packed = png.check(data) if data.startswith(png.SIGNATURE) else []
            with _pillow(data) as image:
                picture = _rgb(image)
                # Rows that were not in the stream are zero; inflating all of them again is slow.
                if packed and (png.is_interlaced(data) or not _last_row(image).any()):
                    png.check_rows(data, packed)
        if picture.shape != (height, width, 3):
            raise ValueError(f"decoded to {picture.shape}, its header has {height}×{width}")
        if scale_log2 and color_space not in _PLAIN:
            size = -(-width >> scale_log2), -(-height >> scale_log2)
            return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        return picture


def _header(data: bytes) -> tuple[int, int, str]:
    """Height, width and, of a JPEG that simplejpeg can read, the name of its colour space."""
    color_space = ""
    try:
        # Not is_jpeg(): it also wants the end marker to be the last bytes.
        if data.startswith(_JPEG):
            height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:
        # Legal sampling factors that TurboJPEG has no name for, or a broken header: Pillow says.
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise
    if not color_space:
        with _pillow(data) as image:
            width, height = image.size
    if height * width > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels, and {MAX_PIXELS} is the limit")
    return height, width, color_space


def _jpeg(
    data: bytes, color_space: str, buffer: U1 | None = None, height: int = 0, width: int = 0
) -> U1:
    """Decode a JPEG with simplejpeg, which makes errors of libjpeg's warnings when strict.

    With a height and width, at the smallest of libjpeg's scales that reaches them.
    """
    options: dict[str, Any] = {"fastdct": False, "fastupsample": False, "buffer": buffer}
    options |= {"min_height": height, "min_width": width}
    try:
        picture = simplejpeg.decode_jpeg(data, color_space, **options)
    except ValueError as error:
        # libjpeg reports the first warning only: nothing was wrong before this one.
        if not _HARMLESS.search(str(error)):
            raise
        picture = simplejpeg.decode_jpeg(data, color_space, strict=False, **options)
    return np.asarray(picture)


def _first_rows(data: bytes, rows: int, width: int, reuse: DecodeBuffer) -> U1 | None:
    """At least so many rows of a JPEG, or None where it must be decoded whole."""
    cut = jpeg.shorter(data, rows)
    if cut is None:
        return None
    buffer = reuse.room(3 * (rows + jpeg.BLENDED) * width)
    try:
        simplejpeg.decode_jpeg(cut, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
    except ValueError as error:
        # libjpeg reports the first warning only: nothing was wrong before what is left over.
        if not _LEFT_OVER.search(str(error)):
            return None
    return buffer[: 3 * rows * width].reshape(rows, width, 3)


@contextmanager
def _pillow(data: bytes) -> Iterator[Image.Image]:
    """Open an image with the plugin of its first bytes; no pixel is decoded yet."""
    if not data:
        raise ValueError("it is empty")
    for beginning, plugin in _PLUGINS:
        if re.match(beginning, data, re.DOTALL):
            _silence_pillow()
            with plugin(io.BytesIO(data)) as image:
                yield image
            return
    raise ValueError(
        f"it begins with {data[:16]!r} and is no JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM"
    )


def _silence_pillow() -> None:
    """Keep Pillow from warning of odd metadata, and of sizes between its own limit and ours.

    The warning filters belong to the process. This one is put in front once and stays: a filter
    that one thread takes away is missed by another. It also means that an image decodes, or does
    not, under any filters a program has set.
    """
    with _FILTERS:
        if [*warnings.filters[:1]] != [_SILENCE]:
            warnings.filterwarnings("ignore", module=_PILLOW_WARNS)


def _rgb(image: Image.Image) -> U1:
    """Convert an opened image to 8-bit RGB, without alpha."""
    image.load()
    # Else converting would look for a colour that stands for "transparent" in the new mode.
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # convert() would clip at 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits of unknown range")
    rgba = image.convert("RGBA") if image.mode in ("P", "PA", "LA") else image
    return np.array(rgba.convert("RGB"))


def _last_row(image: Image.Image) -> NDArray[np.generic]:
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))


@contextmanager
def _naming(key: str, data: bytes) -> Iterator[None]:
    """Make a DataError of everything libraries raise on broken bytes: there are a dozen kinds."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        fix = "Repair or remove this image; a cache never contains an image it could not read."
        if found := describe(data[:HEAD]):
            reason, fix = f"it is {found}", ""
        raise DataError(f"sample {key!r} cannot be decoded ({reason}). {fix}".strip()) from None
