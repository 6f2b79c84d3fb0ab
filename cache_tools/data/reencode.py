"""Images on their way into a shard: check, shrink, and find the kind of file."""

import re
from importlib.metadata import version

import cv2
import numpy as np
import simplejpeg

from cache_tools.errors import DataError
from cache_tools.file_contents import HEAD, describe
from cache_tools.render import decode

KINDS = (
    (rb"\xff\xd8\xff", "jpg"),
    (rb"\x89PNG", "png"),
    (rb"RIFF.{4}WEBP", "webp"),
    (rb".{4}ftypavi[fs]", "avif"),
    (rb"BM", "bmp"),
    (rb"II[*+]\0|MM\0[*+]", "tiff"),
    (rb"P[1-6]\s", "ppm"),
)
"""First bytes of each kind of file (a regular expression), and its extension in a shard."""


def extension(data: bytes, key: str) -> str:
    """Return the extension of an encoded image, by its first bytes: names can be wrong.

    Raises:
        DataError: It is none of the known kinds; `key` names it.
    """
    for beginning, kind in KINDS:
        if re.match(beginning, data, re.DOTALL):
            return kind
    other = describe(data[:HEAD])
    fix = f"It is {other}." if other else "Repair or remove it."
    raise DataError(f"sample {key!r} is not an image of a known kind. {fix}")


def shrink(
    data: bytes, key: str, short_side: int, quality: int, reuse: decode.DecodeBuffer
) -> bytes:
    """Shrink an image to `short_side` pixels, as JPEG; untouched if no larger.

    Shrunk by INTER_AREA, which averages all pixels, and encoded with the accurate DCT and colours
    at half resolution (4:2:0). EXIF data are dropped: no decoder here turns pictures by them.

    Raises:
        DataError: It cannot be decoded; `key` names it.
    """
    picture = decode.decode(data, key, reuse)
    height, width = picture.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return data
    size = round(width * short_side / short), round(height * short_side / short)
    small = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    return bytes(simplejpeg.encode_jpeg(small, quality, "RGB", "420", fastdct=False))


def encoder() -> str:
    """Return the versions that the bytes of a shrunk image depend on."""
    return f"simplejpeg {version('simplejpeg')}, opencv {cv2.__version__}"
