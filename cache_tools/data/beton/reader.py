"""A data set in one `.beton`, the container FFCV reads, as `writer` writes it; without FFCV.

Shapes: N samples.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache_tools.data.beton.records import (
    ALLOCATION,
    DESCRIPTION,
    FIELDS,
    HEADER,
    JPEG,
    METADATA,
    RAW,
    RECORD,
    SUFFIX,
    VERSION,
    Records,
    descriptions,
)
from cache_tools.data.images import ImageDataset, class_folders, class_numbers
from cache_tools.data.info_json import SPLITS
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import describe_file, open_plain
from cache_tools.numerics.array_types import I8, U1, U4
from cache_tools.render import decode
from cache_tools.spec import sample_table
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import paths


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
    """Index a file that `writer` wrote.

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


def _read_tables(file: BinaryIO, size: int, path: Path) -> tuple[Records, Records]:
    """Metadata and allocation table; DataError when the file is not of `writer`."""
    header = np.fromfile(file, HEADER, 1)
    own = len(header) == 1 and header["version"][0] == VERSION
    if not own or header["fields"][0] != len(FIELDS):
        raise _not_ours(path)
    if np.fromfile(file, DESCRIPTION, len(FIELDS)).tobytes() != descriptions().tobytes():
        raise _not_ours(path)
    count = int(header["samples"][0])
    if count * METADATA.itemsize > size or int(header["table"][0]) > size:
        raise ValueError("it is shorter than its header states")
    metadata = np.fromfile(file, METADATA, count)
    if len(metadata) < count:
        raise ValueError("it is shorter than its header states")
    file.seek(int(header["table"][0]))
    return metadata, np.fromfile(file, ALLOCATION)


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
        allocated = np.array([(0, 2**64 - 1, 0)], ALLOCATION)
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
