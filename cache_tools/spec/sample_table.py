"""The sample table: the images of a cache, in an order that no storage layout can change.

A sample is identified by its key; its id is the first 8 bytes of BLAKE2b(key), little endian. The
table is sorted by id: shards or folders, any order of files, one machine or another give the same
table, and a window of consecutive rows contains samples of all classes, as mixup requires.

Shapes: N samples.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CacheMismatch, DataError
from cache_tools.numerics import text_column
from cache_tools.numerics.array_types import U8
from cache_tools.numerics.text_column import TextColumn

MAX_KEY = 4096
"""Bytes of the longest key."""
_PIECE = 2**16
"""Keys that are hashed at once."""


@dataclass(frozen=True)
class SampleTable:
    """N samples, sorted by id."""

    keys: Sequence[str]
    """Names of the samples: a tuple or a TextColumn."""
    id_N: U8
    """`sample_id` of each key, ascending."""
    digest_N: U8
    """BLAKE2b-8 of each encoded image."""
    label_N: NDArray[np.int32]
    """Class of each sample, or NO_LABEL."""
    height_N: NDArray[np.int32]
    """Height of each picture in pixels."""
    width_N: NDArray[np.int32]
    """Width of each picture in pixels."""
    bytes_N: NDArray[np.int64]
    """Encoded size of each image in bytes."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("id", "digest", "label", "height", "width", "bytes")
    """Names of the columns beside the keys, in the order of the fields."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sha256(self) -> str:
        """Digest of every column: the identity of the data set."""
        columns = (
            self.digest_N.astype("<u8", copy=False),
            self.label_N.astype("<i4", copy=False),
            self.height_N.astype("<i4", copy=False),
            self.width_N.astype("<i4", copy=False),
            self.bytes_N.astype("<i8", copy=False),
        )
        digest = hashlib.sha256(text_column.joined(self.keys))
        digest.update(b"\0")
        for column in columns:
            digest.update(np.ascontiguousarray(column).data)
        return "sha256:" + digest.hexdigest()


def sample_id(key: str) -> int:
    """Return the first 8 bytes of BLAKE2b(key), little endian."""
    return int.from_bytes(hashlib.blake2b(key.encode()).digest()[:8], "little")


def sample_ids(keys: Sequence[str]) -> U8:
    """Return `sample_id` of each key, [N]."""
    blake2b = hashlib.blake2b
    encoded = keys.encoded() if isinstance(keys, TextColumn) else (key.encode() for key in keys)
    digests = (blake2b(key).digest()[:8] for key in encoded)
    id_N, at = np.empty(len(keys), "<u8"), 0
    while piece := b"".join(islice(digests, _PIECE)):
        id_N[at : at + len(piece) // 8] = np.frombuffer(piece, "<u8")
        at += len(piece) // 8
    return id_N.astype(np.uint64, copy=False)


def digest(data: bytes) -> int:
    """Return the digest of an encoded image: BLAKE2b-8, little endian."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def check_keys(keys: Iterable[str]) -> None:
    """Raise DataError unless every key is one line of at most MAX_KEY bytes."""
    if isinstance(keys, TextColumn):
        wrong = (keys.length_N < 1) | (keys.length_N > MAX_KEY) | keys.holds(ord("\n"))
        keys = keys.take(np.flatnonzero(wrong))
    for key in keys:
        if "\n" in key or not 0 < len(key.encode("utf-8", "surrogateescape")) <= MAX_KEY:
            raise DataError(
                f"{key[:80]!r} cannot be the key of a sample: it is empty, has more than "
                f"{MAX_KEY} bytes or a line break. Rename it."
            )


def of_keys(keys: Sequence[str], label_N: NDArray[np.int32]) -> SampleTable:
    """Make the table of samples without images from keys and labels in table order."""
    ids = sample_ids(keys)
    none, zero = np.zeros(len(keys), dtype=np.int32), np.zeros(len(keys), dtype=np.int64)
    digests = np.zeros(len(keys), dtype=np.uint64)
    return SampleTable(tuple(keys), ids, digests, label_N, none, none, zero)


def check_digest(table: SampleTable, row: int, data: bytes) -> None:
    """Raise CacheMismatch unless `data` are the bytes that the cache was made from."""
    check_value(table, row, digest(data))


def check_value(table: SampleTable, row: int, found: int) -> None:
    """Raise CacheMismatch unless a digest is the one in a row of the table."""
    if found != int(table.digest_N[row]):
        raise CacheMismatch(
            f"image {table.keys[row]!r} has changed since the cache was made (digest differs). "
            "Restore the original file; the stored targets belong to its pixels."
        )
