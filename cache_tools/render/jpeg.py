"""The header of a JPEG: its scans, and a smaller height in it, so that decoding stops early.

A crop rarely reaches the last row, and a baseline JPEG is decoded from the top: what lies below
the crop costs time for nothing. simplejpeg does not take "so many rows" for an argument, but all
decoders believe the height in the frame header. The rows before it come out bit for bit as they do
of the whole file, but for the last few, which the upsampling of colours blends with rows below.
`turbojpeg` needs no such header.
"""

import re

import numpy as np

from cache_tools.numerics.array_types import U1
from cache_tools.storage.compiled import njit

_BASELINE = (0xC0, 0xC1)
_RESTART_INTERVAL, _SCAN = 0xDD, 0xDA
_FRAME, _RESTART = 0xC0, 0xD0
_BEGIN, _END = 0xD8, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
"""A marker, but for those within the data of a scan (restarts, and 0xff as a value)."""
BLENDED = 4
"""Rows above the new edge that may differ: colours of two rows are blended with the next two's."""


def shorter(data: bytes, rows: int) -> bytes | None:
    """Change a JPEG's header so that at least `rows` rows of it are decoded unchanged.

    Returns:
        The JPEG with another height, or None: it has no rows to spare, or is not of the plain kind
        (one scan, Huffman-coded, no restart markers) whose beginning can be decoded alone. The
        coded rows that are left over are extraneous bytes before the end marker 0xd9.
    """
    at = int(height_at(np.frombuffer(data, np.uint8), rows))
    if not at:
        return None
    return data[:at] + (rows + BLENDED).to_bytes(2, "big") + data[at + 2 :]


def scans(data: bytes, most: int) -> tuple[int, float]:
    """Count the scans of a JPEG, and its samples per pixel; stops after more than `most` scans.

    Of a file whose first scan has all components of a baseline frame, libjpeg reads no other.
    """
    at, found, samples, whole = 2, 0, 0.0, 0
    while (marker := _MARKER.search(data, at)) and found <= most:
        kind, start = marker[1][0], marker.end()
        if kind == _END:
            break
        length = int.from_bytes(data[start : start + 2], "big")
        if kind in _FRAMES and length > 8:
            factors = data[start + 9 : start + length : 3]
            areas = [(f >> 4) * (f & 15) for f in factors]
            across, down = max(f >> 4 for f in factors), max(f & 15 for f in factors)
            samples = sum(areas) / max(across * down, 1)
            whole = len(factors) if kind in _BASELINE else 0
        if kind == _SCAN:
            found += 1
            if data[start + 2 : start + 3] == bytes([whole]):
                break
        at = start + max(length, 2) * (kind != _BEGIN)
    return found, samples


@njit(nogil=True, cache=True)
def height_at(data: U1, rows: int) -> int:
    """Find the height (two bytes, big-endian) in a JPEG's header; 0 = not for `shorter`."""
    found, restarts = _sequential(data)
    height = int(data[found]) << 8 | int(data[found + 1])
    return found if rows + BLENDED < height and not restarts else 0


@njit(nogil=True, cache=True)
def is_sequential(data: U1) -> bool:
    """Check that a JPEG has one scan, coded by Huffman."""
    return _sequential(data)[0] > 0


@njit(nogil=True, cache=True)
def _sequential(data: U1) -> tuple[int, bool]:
    """Find the height in the header of a JPEG of one scan (else 0), and any restart markers."""
    at, found, components, restarts = 2, 0, 0, False
    while at + 9 < data.size:
        marker, length = data[at + 1], int(data[at + 2]) << 8 | int(data[at + 3])
        # of fill bytes and of markers without a length, decoders go on elsewhere
        if data[at] != 0xFF or not (_FRAME <= marker < _RESTART or _END < marker < 0xFF):
            return 0, False
        restarts |= marker == _RESTART_INTERVAL
        if marker in _BASELINE:
            found, components = at + 5, int(data[at + 9])
        if marker == _SCAN:
            return found if data[at + 4] == components else 0, restarts
        at += 2 + length
    return 0, False
