"""The sample table: which images a cache is of, in an order that no storage layout can change.

A sample is known by its key; its id is the first 8 bytes of BLAKE2b(key), little endian. The table
is sorted by id: shards or folders, any order of files, one machine or another give the same table,
and a window of consecutive rows holds samples of all classes, which mixup wants.

Shapes: N samples.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import NO_LABEL, Images
from cache_tools.errors import CacheMismatch, DataError
from cache_tools.render import decode
from cache_tools.spec.cache import DatasetSpec, KeyKind
from cache_tools.spec.canonical import sha256

U8 = NDArray[np.uint64]
Progress = Callable[[int], None]
_SCAN_CHUNK = 1024
_MANY_BROKEN = 1000
"""Broken images after which no more are looked for."""
_SHOWN = 10
MAX_KEY = 4096
"""Bytes of the longest key."""


@dataclass(frozen=True)
class SampleTable:
    """N samples, sorted by id."""

    keys: tuple[str, ...]
    """Names of the samples."""
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
            self.digest_N.astype("<u8"),
            self.label_N.astype("<i4"),
            self.height_N.astype("<i4"),
            self.width_N.astype("<i4"),
            self.bytes_N.astype("<i8"),
        )
        keys = "\n".join(self.keys).encode()
        return sha256(keys + b"\0" + b"".join(column.tobytes() for column in columns))


def sample_id(key: str) -> int:
    """First 8 bytes of BLAKE2b(key), little endian."""
    return int.from_bytes(hashlib.blake2b(key.encode()).digest()[:8], "little")


def digest(data: bytes) -> int:
    """Digest of an encoded image: BLAKE2b-8, little endian."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def check_keys(keys: Iterable[str]) -> None:
    """DataError when a key cannot be stored: one line of at most MAX_KEY bytes is a key."""
    for key in keys:
        if "\n" in key or not 0 < len(key.encode("utf-8", "surrogateescape")) <= MAX_KEY:
            raise DataError(
                f"{key[:80]!r} cannot be the key of a sample: it is empty, has more than "
                f"{MAX_KEY} bytes or a line break. Rename it."
            )


def in_table_order(images: Images, kind: KeyKind | None) -> tuple[KeyKind, list[str], Images]:
    """The data set in the order of a sample table.

    Args:
        images: An opened data set.
        kind: What names a sample, "stem" or "path"; None chooses.

    Returns:
        The kind, the sorted keys, and the data set in their order.

    Raises:
        DataError: Two samples have one name (or, once in 2^64, one id).
    """
    kind, keys = images.keys(kind)
    check_keys(keys)
    ids = np.array([sample_id(key) for key in keys], dtype=np.uint64)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        a, b = order[same[0]], order[same[0] + 1]
        raise DataError(
            f"{images.names[a]!r} and {images.names[b]!r} in {images.source} have the same "
            f"{kind} key or id. Rename one of them: a sample is known by its name."
        )
    return kind, [keys[i] for i in order], images.subset(order)


def scan(
    keys: list[str], images: Images, labels: bool, threads: int, done: Progress
) -> SampleTable:
    """Read and decode every image once and make its row of the table.

    What cannot be decoded is found here, before a teacher is asked: later it would cost every part
    that the image is in, and mending it would make another data set.

    Args:
        keys: Keys in table order.
        images: The data set in table order.
        labels: Whether to keep the labels of the data set.
        threads: Reader threads.
        done: Called with the number of samples read since the last call.

    Raises:
        DataError: Images cannot be read or decoded; a number of them are named.
    """
    reuse = decode.Reuse()

    def row(number: int) -> tuple[int, int, int, int] | DataError:
        try:
            data = images.read(number)
            height, width = decode.decode(data, keys[number], reuse).shape[:2]
        except DataError as error:
            return error
        return digest(data), height, width, len(data)

    rows: list[tuple[int, int, int, int]] = []
    broken: list[DataError] = []
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(keys), _SCAN_CHUNK):
            numbers = range(begin, min(begin + _SCAN_CHUNK, len(keys)))
            for found in pool.map(row, numbers):
                broken.append(found) if isinstance(found, DataError) else rows.append(found)
            done(len(numbers))
            if broken and (len(broken) > _MANY_BROKEN or numbers.stop == len(keys)):
                raise _broken(broken, numbers.stop, images)
    digests = np.array([r[0] for r in rows], dtype=np.uint64)
    height, width, length = np.array([r[1:] for r in rows], dtype=np.int64).T
    label = images.label_N if labels else np.full(len(keys), NO_LABEL, dtype=np.int32)
    ids = np.array([sample_id(key) for key in keys], dtype=np.uint64)
    sides = height.astype(np.int32), width.astype(np.int32)
    return SampleTable(tuple(keys), ids, digests, label, *sides, length)


def _broken(broken: list[DataError], looked_at: int, images: Images) -> DataError:
    shown = "\n".join(str(error) for error in broken[:_SHOWN])
    more = f"\n… and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    return DataError(
        f"{len(broken):,} of the first {looked_at:,} images in {images.source} are broken:\n{shown}"
        f"{more}\nRepair or remove them, or make a data set without them: kdcache shard "
        f"{images.source} DST --skip-broken"
    )


def of_keys(keys: list[str], label_N: NDArray[np.int32]) -> SampleTable:
    """The table of samples of which no image is known.

    Args:
        keys: Keys in table order.
        label_N: Classes, or NO_LABEL.
    """
    ids = np.array([sample_id(key) for key in keys], dtype=np.uint64)
    none, zero = np.zeros(len(keys), dtype=np.int32), np.zeros(len(keys), dtype=np.int64)
    digests = np.zeros(len(keys), dtype=np.uint64)
    return SampleTable(tuple(keys), ids, digests, label_N, none, none, zero)


def classes_sha256(images: Images) -> str:
    """Digest of the class names, "" when the data set does not name its classes."""
    return sha256("\n".join(images.class_names).encode()) if images.class_names else ""


def match(table: SampleTable, dataset: DatasetSpec, images: Images) -> Images:
    """The data set in the order of `table`, if it is the one the cache is of; `coverage.join`."""
    from cache_tools.data import match as coverage  # which builds on this module

    return coverage.join(table, dataset, images)[0]


def check_digest(table: SampleTable, row: int, data: bytes) -> None:
    """CacheMismatch when `data` are not the bytes the cache was made from."""
    if digest(data) != int(table.digest_N[row]):
        raise CacheMismatch(
            f"image {table.keys[row]!r} has changed since the cache was made (digest differs). "
            "Restore the original file; the stored targets belong to its pixels."
        )
