"""Check sizes and offsets of a compressed chunk before it is decompressed.

A chunk is a frame of Blosc 1 with its crc32c behind it. Blosc trusts the sizes and the offsets in a
frame's head: a forged one makes it allocate gigabytes or read beyond its input. The author of a
forged cache can compute any digest, so digests do not help against that; this check does.
"""

import struct

import numpy as np

_HEAD, _CRC = 16, 4
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
