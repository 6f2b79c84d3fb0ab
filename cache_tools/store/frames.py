"""Check sizes and offsets of a compressed chunk before it is decompressed.

A chunk is a frame of Blosc 1 with its crc32c behind it. Blosc trusts the sizes and the offsets in a
frame's head: a forged one makes it allocate gigabytes or read beyond its input. The author of a
forged cache can compute any digest, so digests do not help against that; this check does.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

_HEAD, _CRC = 16, 4
_PIECE = 2**22
"""Bytes of values that are decompressed at a time, at least one block of a frame."""
_MEMCPYED, _UNSPLIT = 0x02, 0x10
SLACK = 65_536
"""A chunk may be this many bytes larger than its values, should these not compress."""


def check(data: bytes, size: int, itemsize: int) -> None:
    """Check the frame of a stored chunk of `size` bytes of values, `itemsize` bytes each.

    Raises:
        ValueError: It cannot be the frame of such values.
    """
    length = len(data) - _CRC
    if length < _HEAD:
        raise ValueError(f"{len(data)} bytes are no chunk")
    version, _, flags, typesize, values, blocksize, packed = struct.unpack_from("<4B3I", data)
    if (version, typesize, values, packed) != (2, itemsize, size, length):
        raise ValueError(
            f"its frame (version {version}, {typesize} bytes a value, {values} bytes in {packed}) "
            f"is not of {size} bytes in {length}"
        )
    if flags & _MEMCPYED:
        if length != _HEAD + size:
            raise ValueError("it is not compressed and has another length than its values")
    elif size:
        _check_blocks(data, size, itemsize, blocksize, bool(flags & _UNSPLIT))


def decode_entries(
    data: bytes, width: int, dtype: np.dtype[np.unsignedinteger], count: int
) -> NDArray[np.unsignedinteger]:
    """Decode the first `count` of the `width` values of a stored chunk; all others must be zero.

    Blocks of a frame are independent. They are decompressed a few at a time, so that zeros, which
    take no bytes, take no memory either.

    Raises:
        ValueError, RuntimeError: It does not decode, or the values do not end there.
    """
    check(data, width * dtype.itemsize, dtype.itemsize)
    if google_crc32c.value(data[:-_CRC]) != int.from_bytes(data[-_CRC:], "little"):
        raise ValueError("its crc32c differs")
    values, at = np.empty(min(count, width), dtype), 0
    for piece in _pieces(data, width * dtype.itemsize):
        found = np.frombuffer(piece, dtype.newbyteorder("<"))
        used = max(min(count - at, len(found)), 0)
        values[at : at + used] = found[:used]
        if found[used:].any():
            break
        at += len(found)
    if at < width or count > width:
        raise ValueError(f"its entries do not end after {count}, the sum of its counts")
    return values


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Decompress a checked frame of `size` bytes of values, a few blocks at a time."""
    _, _, flags, _, _, blocksize, _ = struct.unpack_from("<4B3I", data)
    if flags & _MEMCPYED or size <= _PIECE:
        yield data[_HEAD:-_CRC] if flags & _MEMCPYED else blosc.decompress(data[:-_CRC])
        return
    starts = np.frombuffer(data, "<i4", -(-size // blocksize), _HEAD).tolist()
    ends = [*sorted(starts), len(data) - _CRC]
    firsts = [*range(0, size // blocksize, max(_PIECE // blocksize, 1))]  # a short block is none
    for first, last in pairwise([*firsts, len(starts)]):
        some = starts[first:last]
        begin, end = min(some), ends[bisect_right(ends, max(some))]
        inner = min(last * blocksize, size) - first * blocksize
        head = _HEAD + 4 * len(some)
        yield blosc.decompress(
            struct.pack("<4s3I", data[:4], inner, blocksize, head + end - begin)
            + struct.pack(f"<{len(some)}i", *(start - begin + head for start in some))
            + data[begin:end]
        )


def _check_blocks(data: bytes, size: int, itemsize: int, blocksize: int, unsplit: bool) -> None:
    """Check that every block's streams begin behind the table of blocks and end in the frame."""
    length = len(data) - _CRC
    if not 0 < blocksize <= size:
        raise ValueError(f"blocks of {blocksize} bytes in {size}")
    blocks = -(-size // blocksize)
    begin = _HEAD + 4 * blocks
    if begin > length:
        raise ValueError(f"{blocks} blocks in {length} bytes")
    starts = np.frombuffer(data, dtype="<i4", count=blocks, offset=_HEAD).tolist()
    for number, start in enumerate(starts):
        at = start
        short = number == blocks - 1 and size % blocksize != 0
        split = not unsplit and not short and itemsize <= 16 and blocksize // itemsize >= 128
        for _ in range(itemsize if split else 1):
            if not begin <= at <= length - 4:
                raise ValueError(f"block {number} begins at byte {at} of {length}")
            (stream,) = struct.unpack_from("<i", data, at)
            at += 4 + stream
            if stream <= 0 or at > length:
                raise ValueError(f"block {number} ends beyond byte {length}")
