"""A data set as one `.beton`, the container FFCV reads; written and indexed here without FFCV.

Images lie in it as they were: the same JPEG bytes, so that the pixels, the digests and a cache stay
those of the original (FFCV's own writer encodes JPEGs again). With `raw` they lie as pixels, which
takes ten times the room and no decoding. What FFCV's decoder cannot read (CMYK, PNG, …) lies as
pixels in any case, its encoded bytes beside it.

FFCV's writer waits for ever when one of its processes raises, and needs to know the largest sample
beforehand; this one is a thread pool and one pass. Layout: header, field descriptions, a row of
metadata per sample, pages of image bytes (no image crosses a page), names, allocation table.

Shapes: N samples.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset, class_folders, class_numbers
from cache_tools.data.info_json import SPLITS
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import describe_file, open_plain
from cache_tools.numerics.array_types import I8, U1, U4
from cache_tools.render import decode
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic, paths

Records = NDArray[np.void]
JPEG, RAW = 0, 1
SUFFIX = ".beton"
_VERSION, _PAGE, _CHUNK = 2, 2**23, 256
_MAX_SIDE = 65_535
_INT, _RGB, _BYTES = 1, 2, 3

_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")]
)
_DESCRIPTION = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
_ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
_RANGE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_FIELDS: tuple[tuple[str, int, np.dtype[Any]], ...] = (
    ("image", _RGB, _IMAGE),
    ("label", _INT, np.dtype("<i8")),
    ("name", _BYTES, _RANGE),
    ("digest", _INT, np.dtype("<i8")),  # of the encoded image, whatever is stored of it
    ("bytes", _INT, np.dtype("<i8")),  # how many it has
    ("stored", _INT, np.dtype("<i8")),  # digest of the stored bytes
    ("source", _BYTES, _RANGE),  # the encoded image, where "image" is pixels; size 0 = not kept
)
_METADATA = np.dtype([(f"f{i}", kind) for i, (_, _, kind) in enumerate(_FIELDS)], align=True)
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


@dataclass
class Beton(ImageDataset):
    """An opened `.beton`: a data set like any other whose pictures may be there as pixels."""

    rows_N: Records = field(default_factory=lambda: np.empty(0, RECORD))
    """[N] of RECORD."""
    _crc_N: U4 = field(default_factory=lambda: np.empty(0, np.uint32), repr=False)

    def __post_init__(self) -> None:
        self._crc_N = np.zeros(len(self.rows_N), np.uint32)

    @property
    def path(self) -> Path:
        """The file."""
        return self.paths[0]

    def subset(self, numbers: NDArray[np.int64]) -> Self:
        """Select samples, in this order."""
        return replace(super().subset(numbers), rows_N=self.rows_N[numbers])

    def read(self, number: int) -> bytes:
        """Read the encoded bytes of one sample.

        Raises:
            DataError: The file holds only its pixels, or is damaged.
        """
        if int(self.offset_N[number]) == 0:
            raise DataError(
                f"{self.source} holds the pixels of {self.names[number]!r} and no encoded image, "
                "which is needed here. Write it without --raw, or pass the original data set."
            )
        return super().read(number)

    def locate(self, number_P: NDArray[np.int64]) -> tuple[I8, I8, I8]:
        """As of any data set; pixels are no encoded picture."""
        descriptor_P, offset_P, length_P = super().locate(number_P)
        return descriptor_P, offset_P, np.where(self.rows_N["mode"][number_P] == RAW, 0, length_P)

    def recorded(self) -> dict[str, NDArray[Any]]:
        """As of any data set; digests and sizes in pixels, too."""
        columns = {name: self.rows_N[name] for name in ("height", "width", "digest")}
        return super().recorded() | columns

    def compare(self, table: SampleTable, row: int) -> None:
        """Compare the stored bytes, pixels or encoded, with a row of a cache's table.

        Raises:
            DataError: They are damaged; of pixels, they are others than those of the encoded image.
            CacheMismatch: They are of another image.
        """
        self.check(row)
        if int(self.offset_N[row]) == 0:
            sample_table.check_value(table, row, int(self.rows_N[row]["digest"]))
            return
        super().compare(table, row)
        pixels = self.pixels(row)
        if pixels is not None and (decode.decode(self.read(row), self.names[row]) != pixels).any():
            raise DataError(
                f"{self.path} has other pixels of {self.names[row]!r} than its encoded image. "
                "Write the file again with kdcache beton."
            )

    def pixels(self, number: int) -> U1 | None:
        """[H, W, 3] of a sample whose pixels are stored, else None.

        Raises:
            DataError: They cannot be read, or are damaged; the sample is named.
        """
        row = self.rows_N[number]
        if row["mode"] != RAW:
            return None
        data = self._checked(number)
        return np.frombuffer(data, np.uint8).reshape(int(row["height"]), int(row["width"]), 3)

    def check(self, number: int) -> None:
        """Compare the stored bytes of a sample with their digest, once for each opened file.

        Raises:
            DataError: They differ, or cannot be read; the sample is named.
        """
        if not self._crc_N[number]:
            self._checked(number)

    def _checked(self, number: int) -> bytes:
        """Read the stored bytes of a sample; from the second time on a CRC-32C is the digest's."""
        data = self.stored(number)
        crc = google_crc32c.value(data)
        if not crc or crc != self._crc_N[number]:
            if sample_table.digest(data) != int(self.rows_N[number]["stored"]):
                raise DataError(
                    f"image {self.names[number]!r} in {self.path} is damaged (digest differs). "
                    "Write the file again with kdcache beton."
                )
            self._crc_N[number] = crc
        return data

    def unchecked(self, numbers: NDArray[np.int64]) -> list[int]:
        """List those of some samples that `check` has not compared yet, each once."""
        left: list[int] = np.unique(numbers[self._crc_N[numbers] == 0]).tolist()
        return left

    def stored(self, number: int) -> bytes:
        """Read the stored bytes of a sample, a JPEG or pixels.

        Raises:
            DataError: The file is gone, unreadable or shorter than it was; the sample is named.
        """
        row, name = self.rows_N[number], self.names[number]
        try:
            data = self._file_pool.read(self.paths[0], int(row["ptr"]), int(row["size"]))
        except OSError as error:
            raise DataError(f"cannot read sample {name!r} in {self.path}: {error}.") from None
        if len(data) != row["size"]:
            raise DataError(
                f"sample {name!r} in {self.path} has {len(data)} bytes, {row['size']} were there "
                "when the file was opened. Write the file again with kdcache beton."
            )
        return data


def find(source: str, split: str) -> Path | None:
    """Find the `.beton` of a split of `source`, or None.

    A folder has train.beton, validation.beton, …; a file stands for the train split and, for other
    splits, for the file beside it that has their name or, when there is none, for itself.
    """
    path = Path(source)
    if paths.exists(path, folder=True):
        return next((f for n in SPLITS[split] if (f := path / f"{n}{SUFFIX}").exists()), None)
    if path.suffix != SUFFIX:
        return None
    if split == "train":
        return path
    return next((f for n in SPLITS[split] if (f := path.with_stem(n)).exists()), path)


def open_beton(path: Path) -> Beton:
    """Index a file that `write` wrote.

    Raises:
        UsageError: There is none.
        DataError: It is damaged, or not of this kind: images encoded again cannot be replayed.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            metadata, allocated = _read_tables(file, size, path)
            names = _read_names(file, metadata, size)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}. kdcache beton SRC {path} writes it.") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Write it again.") from None
    rows, source = _records(metadata, allocated, size, path), metadata["f6"]
    plain = rows["mode"] == JPEG
    return Beton(
        str(path),
        [path],
        names,
        np.zeros(len(rows), np.int32),
        np.where(plain, rows["ptr"], np.where(source["size"], source["ptr"], 0)).astype(np.int64),
        metadata["f4"].astype(np.int64),
        metadata["f1"].astype(np.int32),
        _class_names(names, metadata["f1"]),
        sharded=True,
        rows_N=rows,
    )


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
    metadata = np.zeros(count, _METADATA)
    pages = _Pages(file, _HEADER.itemsize + len(_FIELDS) * _DESCRIPTION.itemsize + metadata.nbytes)
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
    header = np.array([(_VERSION, len(_FIELDS), pages.page, count, table)], _HEADER)
    file.seek(0)
    for part in (header, _descriptions(), metadata):
        file.write(part.tobytes())
    file.seek(table)
    file.write(np.array(pages.allocated, _ALLOCATION).tobytes())


def _encoded(images: ImageDataset, raw: bool, pool: ThreadPoolExecutor) -> Iterator[_Encoded]:
    """All samples in order, a bounded number of them in memory."""
    for numbers in _chunks(len(images)):
        yield from pool.map(lambda number: _encode(images, number, raw), numbers)


def _descriptions() -> Records:
    rows = np.zeros(len(_FIELDS), _DESCRIPTION)
    for row, (name, kind, _) in zip(rows, _FIELDS, strict=True):
        row["type"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return rows


def _read_tables(file: BinaryIO, size: int, path: Path) -> tuple[Records, Records]:
    """Metadata and allocation table; DataError when the file is not of `write`."""
    header = np.fromfile(file, _HEADER, 1)
    own = len(header) == 1 and header["version"][0] == _VERSION
    if not own or header["fields"][0] != len(_FIELDS):
        raise _not_ours(path)
    if np.fromfile(file, _DESCRIPTION, len(_FIELDS)).tobytes() != _descriptions().tobytes():
        raise _not_ours(path)
    count = int(header["samples"][0])
    if count * _METADATA.itemsize > size or int(header["table"][0]) > size:
        raise ValueError("it is shorter than its header states")
    metadata = np.fromfile(file, _METADATA, count)
    if len(metadata) < count:
        raise ValueError("it is shorter than its header states")
    file.seek(int(header["table"][0]))
    return metadata, np.fromfile(file, _ALLOCATION)


def _read_names(file: BinaryIO, metadata: Records, size: int) -> list[str]:
    where = metadata["f2"]
    if len(where) == 0:
        return []
    if _outside(where, size).any():
        raise ValueError("the names of its samples are not in it")
    ends = where["ptr"] + where["size"]
    first, last = int(where["ptr"].min()), int(ends.max())
    file.seek(first)
    text = file.read(last - first)
    pairs = zip((where["ptr"] - first).tolist(), (ends - first).tolist(), strict=True)
    return [text[a:b].decode("utf-8", "surrogateescape") for a, b in pairs]


def _outside(ranges: Records, size: int) -> NDArray[np.bool_]:
    """Find ranges (ptr, size) that leave a file of `size` bytes; sums of both may overflow."""
    end = np.uint64(size)
    outside = (ranges["size"] > end) | (ranges["ptr"] > end - np.minimum(ranges["size"], end))
    return np.asarray(outside)


def _records(metadata: Records, allocated: Records, size: int, path: Path) -> Records:
    """Rows of RECORD; DataError when one of them points to where nothing is."""
    rows, image = np.zeros(len(metadata), RECORD), metadata["f0"]
    for name in ("ptr", "mode", "height", "width"):
        rows[name] = image[name]
    rows["digest"], rows["stored"] = (metadata[f].view(np.uint64) for f in ("f3", "f5"))
    allocated = allocated[np.argsort(allocated["ptr"])]
    if not len(allocated):  # then none of the rows is there
        allocated = np.array([(0, 2**64 - 1, 0)], _ALLOCATION)
    at = np.searchsorted(allocated["ptr"], rows["ptr"])
    found = allocated[np.minimum(at, len(allocated) - 1)]
    rows["size"] = found["size"]
    pixels = 3 * rows["height"].astype(np.uint64) * rows["width"].astype(np.uint64)
    length, source, raw = metadata["f4"], metadata["f6"], rows["mode"] == RAW
    wrong = (found["ptr"] != rows["ptr"]) | _outside(rows, size) | (rows["mode"] > RAW)
    wrong |= ~raw & ((rows["stored"] != rows["digest"]) | (rows["size"] != length))
    wrong |= raw & ((rows["size"] != pixels) | (length < 0))
    wrong |= raw & (source["size"] > 0) & ((source["size"] != length) | _outside(source, size))
    wrong |= metadata["f1"] != metadata["f1"].astype(np.int32)
    if wrong.any():
        raise DataError(f"{path} is damaged: row {int(wrong.argmax())} cannot be. Write it again.")
    return rows


def _class_names(names: list[str], labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Class folders of the ImageFolder this was made from; none when labels come from elsewhere."""
    number, class_names = class_numbers({*(folders := class_folders(names))}, training=True)
    same = "" not in number and [number[folder] for folder in folders] == labels.tolist()
    return class_names if same else ()


def _not_ours(path: Path) -> DataError:
    if other := describe_file(path):
        return DataError(f"{path} is no {SUFFIX}{other}.")
    return DataError(
        f"{path} was not written by kdcache: FFCV's writer encodes images again and keeps no names "
        "to join by, so a cache cannot be of its pixels. Write one with: kdcache beton SRC FILE."
    )
