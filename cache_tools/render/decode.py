"""Encoded image → uint8 RGB pixels, or a `DataError` that names the sample. Nothing between.

FORMAT.md, section 3.4, defines the treatment of every odd kind of image. JPEG is decoded by
libjpeg-turbo with the accurate DCT and fancy upsampling (Pillow, OpenCV and torchvision give the
same bits), everything else by Pillow. libjpeg fills what a broken file lacks with grey and only
warns; `simplejpeg` makes an error of the warning, Pillow does not, so that as few JPEG as possible
go through Pillow (`pillow`). Large pictures wait for memory (`decode_memory`).
"""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import simplejpeg

from cache_tools.errors import CacheMismatch, DataError, OutOfMemory
from cache_tools.file_contents import HEAD, describe
from cache_tools.numerics.array_types import U1
from cache_tools.render import decode_memory, jpeg, pillow, png, turbojpeg
from cache_tools.render.decode_memory import MAX_MEMORY
from cache_tools.runtime import host_memory

log = logging.getLogger("kdcache")
MAX_PIXELS = 2**28
"""Most pixels of an image."""

_JPEG = b"\xff\xd8\xff"
_PLAIN = ("RGB", "YCbCr", "Gray")
_MOST_SCANS, _MOST_SCANNED = 500, 2**33
"""Scans of a JPEG, and scans times pixels: each goes over the whole picture."""
_KEPT = 2**26
"""Bytes of the largest memory that is kept for the next picture."""

# The padding some cameras leave: all pixels were decoded when libjpeg met these bytes.
_HARMLESS = re.compile(r": \d{1,2} extraneous bytes before marker 0xd9")

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""
_LEFT_OVER = re.compile(r": \d+ extraneous bytes before marker 0xd9")


def size(data: bytes, key: str) -> tuple[int, int]:
    """Height and width of an encoded image in pixels, read from its header.

    Raises:
        DataError: Not an image, or one of absurd size; `key` names it.
    """
    with _naming(key, data):
        return _header(data)[:2]


def check_sides(key: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Raise CacheMismatch unless an image has the height and width that its sample table has.

    Views are drawn by the table's: in a picture of another size they would be other views, or none.
    """
    if found != expected:
        raise CacheMismatch(
            f"image {key!r} has {found[0]}×{found[1]} pixels (height×width), the sample table of "
            f"the cache has {expected[0]}×{expected[1]}, by which its views are drawn. Pass the "
            "data set the cache was made from, or get the cache from its source again."
        )


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
        if count > _KEPT:
            return np.empty(count, dtype=np.uint8)
        if self._memory.size < count:
            self._memory = np.empty(count, dtype=np.uint8)
        return self._memory


def decode(
    data: bytes,
    key: str,
    reuse: DecodeBuffer | None = None,
    scale_log2: int = 0,
    box: Box | None = None,
    sides: tuple[int, int] | None = None,
) -> U1:
    """Decode an image to [H, W, 3] RGB.

    Args:
        data: The encoded image.
        key: Name of the sample, for messages.
        reuse: Where to decode to; None makes new memory.
        scale_log2: Decode at 1/2, 1/4 or 1/8 (1, 2, 3): [ceil(H / 2^scale_log2), …]. libjpeg makes
            fewer pixels of a JPEG's blocks; other formats are shrunk by INTER_AREA.
        box: Top, left, height and width of the pixels that are wanted: others may be anything, rows
            below may be missing. Damage further down goes unseen, so this is for bytes that were
            decoded as a whole before.
        sides: Height and width that it must have, in pixels; None: any.

    Raises:
        DataError: Not an image, one of absurd size or a broken one; `key` names it.
        CacheMismatch: It has others.
        OutOfMemory: There is not enough memory.
    """
    with decoded(data, key, reuse, scale_log2, box, sides) as picture:
        return picture


@contextmanager
def decoded(
    data: bytes,
    key: str,
    reuse: DecodeBuffer | None = None,
    scale_log2: int = 0,
    box: Box | None = None,
    sides: tuple[int, int] | None = None,
) -> Iterator[U1]:
    """Decode as `decode` does; the memory of a large picture counts until the block ends.

    A thread that has one must not decode another: it might wait for itself.
    """
    with _naming(key, data):
        height, width, color_space, memory = _header(data)
        if sides is not None:
            check_sides(key, (height, width), sides)
    if box is not None and color_space in _PLAIN and not scale_log2:
        missing = max(height - box[0] - box[2] - jpeg.BLENDED, 0)
        with decode_memory.charged(memory - 3 * missing * width):
            with _naming(key, data):
                part = _part(data, box, height, width, reuse or DecodeBuffer())
            if part is not None:
                yield part
                return
    small = -(-height >> scale_log2), -(-width >> scale_log2)
    if color_space in _PLAIN:
        memory -= 3 * (height * width - small[0] * small[1])
    with decode_memory.charged(memory):
        with _naming(key, data):
            picture = _decode(data, height, width, color_space, reuse, scale_log2)
        yield picture


def _decode(
    data: bytes,
    height: int,
    width: int,
    color_space: str,
    reuse: DecodeBuffer | None,
    scale_log2: int,
) -> U1:
    """Decode an image of a known header."""
    if color_space in _PLAIN:
        small = -(-height >> scale_log2), -(-width >> scale_log2)
        buffer = None if reuse is None else reuse.room(3 * small[0] * small[1])
        picture = _jpeg(data, "RGB", buffer, *(small if scale_log2 else (0, 0)))
        height, width = small
    else:
        if color_space:  # CMYK or YCCK: Pillow makes RGB of it, but would not notice damage
            _jpeg(data, "CMYK")
        packed = png.check(data) if data.startswith(png.SIGNATURE) else []
        with pillow.opened(data) as image:
            picture = pillow.rgb(image)
            # Rows that were not in the stream are zero; inflating all again is slow.
            if packed and (png.is_interlaced(data) or not pillow.last_row(image).any()):
                png.check_rows(data, packed)
    if picture.shape != (height, width, 3):
        raise ValueError(f"decoded to {picture.shape}, its header has {height}×{width}")
    if scale_log2 and color_space not in _PLAIN:
        size = -(-width >> scale_log2), -(-height >> scale_log2)
        return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return picture


def _header(data: bytes) -> tuple[int, int, str, int]:
    """Height, width, colour space of a JPEG that simplejpeg can read, and bytes to decode it."""
    color_space = ""
    try:
        # Not is_jpeg(): it also wants the end marker to be the last bytes.
        if data.startswith(_JPEG):
            height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:
        # Legal sampling factors that TurboJPEG has no name for, or a broken header: Pillow says.
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise
    cost, most = 3.0 if color_space in _PLAIN else 7.0, 0
    if not color_space:
        with pillow.opened(data) as image:
            width, height = image.size
            tags = getattr(image, "tag_v2", {})  # a tile of a TIFF may be larger than the picture
            most = int(tags.get(322, 0)) * int(tags.get(323, 0))
            stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode[:4] == "I;16" else 4
            cost = 3.0 + stored + pillow.bytes_per_pixel(image)
    if data.startswith(_JPEG):
        scans, samples = jpeg.scans(data, _MOST_SCANS)
        cost += 2 * samples * (scans > 1)  # the coefficients
        if scans > 1 and (scans > _MOST_SCANS or scans * height * width > _MOST_SCANNED):
            raise ValueError(f"it has {scans} scans of {width}×{height} pixels, beyond the limit")
    limit = min(MAX_PIXELS, int(MAX_MEMORY / cost))
    if max(height * width, most) > limit:
        what = f"{width}×{height} pixels" if height * width >= most else f"tiles of {most} pixels"
        raise ValueError(
            f"it has {what}, and {limit} is the limit of its format, at {cost:.3g} bytes of memory "
            "for each"
        )
    return height, width, color_space, int(max(height * width, most) * cost)


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


def _part(data: bytes, box: Box, height: int, width: int, reuse: DecodeBuffer) -> U1 | None:
    """Decode a JPEG down to the last row of a box, or None where it must be decoded whole."""
    rows = box[0] + box[2]
    if not 0 < rows <= height:
        return None
    calls_F = turbojpeg.functions()
    if calls_F.size:
        room = reuse.room(3 * rows * width)
        if turbojpeg.region(calls_F, np.frombuffer(data, np.uint8), *box, room) != (rows, width):
            return None
        return room[: 3 * rows * width].reshape(rows, width, 3)
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
def _naming(key: str, data: bytes) -> Iterator[None]:
    """Make a DataError of everything libraries raise on broken bytes: there are a dozen kinds."""
    try:
        yield
    except CacheMismatch:
        raise
    except MemoryError as error:
        raise OutOfMemory(host_memory.shortage(f"decode sample {key!r}", error)) from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        fix = "Repair or remove this image; a cache never contains an image it could not read."
        if found := describe(data[:HEAD]):
            reason, fix = f"it is {found}", ""
        raise DataError(f"sample {key!r} cannot be decoded ({reason}). {fix}".strip()) from None
