"""One picture, encoded by Pillow and as a PNG by hand."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from cache_tools.numerics.array_types import U1

KEY = "n01440764_10026"
NOISE = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
RGB: U1 = cv2.resize(NOISE, (88, 72), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
PHOTO = Image.fromarray(RGB)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(height: int, width: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + chunk(b"IEND", b"")
