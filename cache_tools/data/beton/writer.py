"""Write a data set as one `.beton`, the container FFCV reads, without FFCV.

Images lie in it as they were: the same JPEG bytes, so that the pixels, the digests and a cache stay
those of the original (FFCV's own writer encodes JPEGs again). With `raw` they lie as pixels, which
takes ten times the room and no decoding. What FFCV's decoder cannot read (CMYK, PNG, …) lies as
pixels in any case, its encoded bytes beside it.

FFCV's writer waits for ever when one of its processes raises, and needs to know the largest sample
beforehand; this one is a thread pool and one pass.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cache_tools.data.beton.reader import open_beton
from cache_tools.data.beton.records import (
    ALLOCATION,
    DESCRIPTION,
    FIELDS,
    HEADER,
    JPEG,
    METADATA,
    RAW,
    SUFFIX,
    VERSION,
    descriptions,
)
from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.render import decode
from cache_tools.spec import sample_table
from cache_tools.storage import atomic

_PAGE, _CHUNK = 2**23, 256
_MAX_SIDE = 65_535


def write(
    images: ImageDataset, out: Path, raw: bool, threads: int, done: Callable[[int], None]
) -> None:
    """Write a data set; the file appears whole or not at all.

    Args:
        images: The data set. Every image is decoded once, so that none is in it that cannot be.
        out: The file.
        raw: Whether to store pixels instead of JPEG bytes.
        threads: How many images are read and decoded at once.
        done: Called with the number of images written since the last call.

    Raises:
        DataError: An image cannot be decoded, or has a side of more than 65,535 pixels.
        KdcacheError: The file cannot be written.
    """
    atomic.sweep(out)
    try:
        with atomic.temporary(out) as partial:
            with partial.open("wb") as file, ThreadPoolExecutor(threads) as pool:
                try:
                    _write(file, images, raw, pool, done)
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(out)
        atomic.sync_folder(out.parent)
    except DataError:
        raise
    except OSError as error:
        raise atomic.cannot_write(out, error) from None


def holds(
    out: Path, images: ImageDataset, raw: bool, threads: int, done: Callable[[int], None]
) -> bool:
    """Return whether a file is, undamaged, what `write` would write; arguments as of `write`.

    All images are read, but not decoded.

    Raises:
        DataError: An image cannot be read.
    """
    try:
        there = open_beton(out)
    except DataError:
        return False
    if there.names != images.names or (there.label_N != images.label_N).any():
        return False

    def same(number: int) -> bool:
        data, row = images.read(number), there.rows_N[number]
        mode = RAW if raw or not decode.is_plain_jpeg(data) else JPEG
        encoded = bool(there.offset_N[number])
        kept = encoded == (mode == JPEG or not raw)
        if int(row["mode"]) != mode or not kept or int(row["digest"]) != sample_table.digest(data):
            return False
        try:
            there.check(number)
        except DataError:
            return False
        done(1)
        return True

    with ThreadPoolExecutor(threads) as pool:
        return all(all(pool.map(same, numbers)) for numbers in _chunks(len(images)))


def _chunks(count: int) -> Iterator[range]:
    """Numbers of a bounded number of samples at a time."""
    return (range(begin, min(begin + _CHUNK, count)) for begin in range(0, count, _CHUNK))


@dataclass(frozen=True)
class _Encoded:
    """One sample, ready to be written."""

    mode: int
    height: int
    width: int
    digest: int
    length: int
    stored: int
    data: bytes
    source: bytes


def _encode(images: ImageDataset, number: int, raw: bool) -> _Encoded:
    data, key = images.read(number), images.names[number]
    picture = decode.decode(data, key)
    height, width = picture.shape[:2]
    if max(height, width) > _MAX_SIDE:
        raise DataError(f"{key!r} has {width}×{height} pixels; {SUFFIX} has room for {_MAX_SIDE}.")
    mode = RAW if raw or not decode.is_plain_jpeg(data) else JPEG
    kept = data if mode == JPEG else picture.tobytes()
    digests = sample_table.digest(data), len(data), sample_table.digest(kept)
    return _Encoded(mode, height, width, *digests, kept, b"" if raw or mode == JPEG else data)


class _Pages:
    """Allocator of file ranges: consecutive, none across a page, the page as large as needed."""

    def __init__(self, file: BinaryIO, begin: int) -> None:
        self._file, self._at, self.page = file, -(-begin // _PAGE) * _PAGE, _PAGE
        self.allocated: list[tuple[int, int, int]] = []

    def put(self, sample: int, data: bytes) -> int:
        """Write bytes of a sample; where they begin."""
        page = max(_PAGE, 1 << (len(data) - 1).bit_length()) if data else _PAGE
        self.page = max(self.page, page)
        if self._at // page != (self._at + max(len(data), 1) - 1) // page:
            self._at = -(-self._at // page) * page
        begin = self._at
        self._file.seek(begin)
        self._file.write(data)
        self.allocated.append((sample, begin, len(data)))
        self._at += max(len(data), 1)  # two ranges never begin at one place
        return begin

    def end(self) -> int:
        """First byte behind the last page."""
        return -(-self._at // self.page) * self.page


def _write(
    file: BinaryIO,
    images: ImageDataset,
    raw: bool,
    pool: ThreadPoolExecutor,
    done: Callable[[int], None],
) -> None:
    count = len(images)
    metadata = np.zeros(count, METADATA)
    pages = _Pages(file, HEADER.itemsize + len(FIELDS) * DESCRIPTION.itemsize + metadata.nbytes)
    nothing = pages.put(0, b"")
    for number, one in enumerate(_encoded(images, raw, pool)):
        row = metadata[number]
        row["f0"] = (one.mode, one.width, one.height, pages.put(number, one.data))
        source = pages.put(number, one.source) if one.source else nothing
        row["f1"], row["f4"] = images.label_N[number], one.length
        row["f6"] = (source, len(one.source))
        row["f3"], row["f5"] = np.array([one.digest, one.stored], np.uint64).view(np.int64)
        done(1)
    for number, name in enumerate(images.names):  # together: opening reads them and no image
        text = name.encode("utf-8", "surrogateescape")
        metadata["f2"][number] = (pages.put(number, text), len(text))
    table = pages.end()
    header = np.array([(VERSION, len(FIELDS), pages.page, count, table)], HEADER)
    file.seek(0)
    for part in (header, descriptions(), metadata):
        file.write(part.tobytes())
    file.seek(table)
    file.write(np.array(pages.allocated, ALLOCATION).tobytes())


def _encoded(images: ImageDataset, raw: bool, pool: ThreadPoolExecutor) -> Iterator[_Encoded]:
    """All samples in order, a bounded number of them in memory."""
    for numbers in _chunks(len(images)):
        yield from pool.map(lambda number: _encode(images, number, raw), numbers)
