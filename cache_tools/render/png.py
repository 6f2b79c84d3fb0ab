"""The checks of a PNG that Pillow leaves out: CRC of pixels, the end, and whether all rows came.

Pillow leaves rows black that the compressed stream, itself intact, does not hold.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIECE = 2**20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
"""First row, first column, step of rows, step of columns of each pass."""


def check(data: bytes) -> list[bytes]:
    """Check that all chunks are whole, and return the compressed pixels, chunk by chunk.

    Raises:
        ValueError: A chunk is cut short, missing, or has another CRC.
    """
    view, start, name, packed = memoryview(data), len(SIGNATURE), b"", []
    if data[12:16] != b"IHDR":
        raise ValueError("its header chunk is not the first")
    while name != b"IEND":
        if len(data) < start + 12:
            raise ValueError("the file ends before its end chunk")
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if len(data) < end + 4:
            raise ValueError(f"the file ends in its chunk {name!r}")
        if zlib.crc32(view[start + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"wrong CRC in its chunk {name!r}")
        if name == b"IDAT":
            packed.append(data[start + 8 : end])
        start = end + 4
    return packed


def is_interlaced(data: bytes) -> bool:
    """Check if rows come in seven passes, so that a late one may be missing anywhere."""
    return data[28] != 0


def check_rows(data: bytes, packed: list[bytes]) -> None:
    """Check the number of compressed pixels against the header.

    Raises:
        ValueError: They are fewer.
        zlib.error: They are no zlib stream.
    """
    width, height, depth, color_type = struct.unpack_from(">IIBB", data, 16)
    bits, due = depth * _CHANNELS[color_type], 0
    for top, left, down, right in _ADAM7 if is_interlaced(data) else _WHOLE:
        rows, columns = len(range(top, height, down)), len(range(left, width, right))
        due += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    have, stream, rest = 0, zlib.decompressobj(), b"".join(packed)
    while have < due and (piece := stream.decompress(rest, _PIECE)):  # counted and dropped
        have, rest = have + len(piece), stream.unconsumed_tail
    if have < due:
        raise ValueError(f"its pixels end after {have} of {due} bytes")
