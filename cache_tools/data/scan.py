"""Read a data set in the order of a sample table, and make the table by reading every image once.

What cannot be decoded is found here, before inference: later it would cost every part that
the image is in, and mending it would make another data set.

Shapes: N samples.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.numerics import text_column
from cache_tools.render import decode
from cache_tools.spec.canonical import sha256
from cache_tools.spec.dataset import NO_LABEL, KeyKind
from cache_tools.spec.sample_table import SampleTable, check_keys, digest, sample_ids

Progress = Callable[[int], None]
_SCAN_CHUNK = 1024
_MANY_BROKEN = 1000
"""Broken images after which no more are looked for."""
_SHOWN = 10


def in_table_order(
    images: ImageDataset, kind: KeyKind | None
) -> tuple[KeyKind, Sequence[str], ImageDataset]:
    """Order a data set as a sample table, by keys of this kind; None chooses.

    Returns:
        The kind, the sorted keys, and the data set in their order.

    Raises:
        DataError: Two samples have one name (or, once in 2^64, one id).
    """
    kind, keys = images.keys(kind)
    check_keys(keys)
    ids = sample_ids(keys)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        a, b = order[same[0]], order[same[0] + 1]
        fix = "Rename one of them: a sample is identified by its name."
        if images.sharded and images.file_N[a] != images.file_N[b]:
            fix = f"Make them unique: kdcache shard {images.source} DST --key shard/key."
        raise DataError(
            f"{images.names[a]!r} and {images.names[b]!r} in {images.source} have the same "
            f"{kind} key or id. {fix}"
        )
    return kind, text_column.take(keys, order), images.subset(order)


def scan(
    keys: Sequence[str], images: ImageDataset, labels: bool, threads: int, done: Progress
) -> SampleTable:
    """Read and decode every image once and make its row of the table.

    Keys and images are in table order; `done` is called with the number of samples read since the
    last call.

    Raises:
        DataError: Images cannot be read or decoded; a number of them are named.
    """
    reuse = decode.DecodeBuffer()

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
    ids = sample_ids(keys)
    sides = height.astype(np.int32), width.astype(np.int32)
    return SampleTable(tuple(keys), ids, digests, label, *sides, length)


def _broken(broken: list[DataError], looked_at: int, images: ImageDataset) -> DataError:
    shown = "\n".join(str(error) for error in broken[:_SHOWN])
    more = f"\n… and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
    return DataError(
        f"{len(broken):,} of the first {looked_at:,} images in {images.source} are broken:\n{shown}"
        f"{more}\nRepair or remove them, or make a data set without them: kdcache shard "
        f"{images.source} DST --skip-broken"
    )


def classes_sha256(images: ImageDataset) -> str:
    """Digest of the class names, "" when the data set does not name its classes."""
    return sha256("\n".join(images.class_names).encode()) if images.class_names else ""
