"""Records of a `.beton`, the container FFCV reads: `writer` writes them, `reader` reads them.

Layout: header, field descriptions, a row of metadata per sample, pages of image bytes (no image
crosses a page), names, allocation table.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]
JPEG, RAW = 0, 1
SUFFIX = ".beton"
VERSION = 2
_INT, _RGB, _BYTES = 1, 2, 3

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")]
)
DESCRIPTION = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
_RANGE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
FIELDS: tuple[tuple[str, int, np.dtype[Any]], ...] = (
    ("image", _RGB, _IMAGE),
    ("label", _INT, np.dtype("<i8")),
    ("name", _BYTES, _RANGE),
    ("digest", _INT, np.dtype("<i8")),  # of the encoded image, whatever is stored of it
    ("bytes", _INT, np.dtype("<i8")),  # how many it has
    ("stored", _INT, np.dtype("<i8")),  # digest of the stored bytes
    ("source", _BYTES, _RANGE),  # the encoded image, where "image" is pixels; size 0 = not kept
)
METADATA = np.dtype([(f"f{i}", kind) for i, (_, _, kind) in enumerate(FIELDS)], align=True)
RECORD = np.dtype(
    [
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("mode", "u1"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("digest", "<u8"),
        ("stored", "<u8"),
    ]
)
"""Columns of `Beton.rows_N`: range, kind, size and digests of a sample's stored bytes."""


def descriptions() -> Records:
    """Make the field descriptions of every file: rows of DESCRIPTION."""
    rows = np.zeros(len(FIELDS), DESCRIPTION)
    for row, (name, kind, _) in zip(rows, FIELDS, strict=True):
        row["type"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return rows
