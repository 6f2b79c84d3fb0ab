"""An opened data set: WebDataset tar shards or an ImageFolder, with random access by number.

It is an index: for every sample its name, its file, its range of bytes in it, and its label. Bytes
are read on request (`read`), from any thread; tars are scanned once, by header, and nothing is
unpacked. Known layouts: timm's `_info.json` beside the tars, a folder of tars, a glob, a brace
pattern, split sub-folders, each of them behind a URL as well (`remote_shards`); and folders of
images named after their class, or numbered by it as ImageNet-V2 is published.

Shapes: N samples.
"""

import logging
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.file_pool import FilePool
from cache_tools.data.remote_shards import RemoteShards
from cache_tools.errors import CacheMismatch, DataError
from cache_tools.numerics import text_column
from cache_tools.numerics.array_types import I8
from cache_tools.numerics.text_column import TextColumn
from cache_tools.runtime.text import counted
from cache_tools.spec import sample_table
from cache_tools.spec.dataset import NO_LABEL, KeyKind
from cache_tools.spec.sample_table import SampleTable

log = logging.getLogger("kdcache")
NO_CRC = -1
MAX_BYTES = 2**29
"""Bytes of the largest encoded picture."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass
class ImageDataset:
    """An opened data set: N encoded images, by file and range of bytes."""

    source: str
    """Path, pattern or URL that was opened, for messages."""
    paths: list[Path]
    """Files: shards, or one per image."""
    names: Sequence[str]
    """[N] path of the sample within the data set, without extension: a list or a TextColumn."""
    file_N: NDArray[np.int32]
    """Number of the sample's file in `paths`."""
    offset_N: NDArray[np.int64]
    """First byte of the sample in that file."""
    length_N: NDArray[np.int64]
    """Bytes of the sample."""
    label_N: NDArray[np.int32]
    """Class, or NO_LABEL."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the labels; none when numbered or not recorded."""
    sharded: bool = True
    """True if a file holds many images (tar), False if it is one."""
    crc_N: NDArray[np.int64] | None = field(default=None, repr=False)
    """CRC-32 of each image and of what is in front of it, of shards behind a URL and of copies in
    the data folder; NO_CRC of others."""
    lead_N: NDArray[np.int64] | None = field(default=None, repr=False)
    """Bytes in front of each image that its CRC-32 is of, too."""
    remote: RemoteShards | None = field(default=None, repr=False)
    """The shards behind a URL; `paths` is empty then."""
    _file_pool: FilePool = field(default_factory=FilePool, repr=False)
    _opened_F: I8 | None = field(default=None, init=False, repr=False, compare=False)
    """Descriptors of those of `paths` that stay open in the pool, -1 of others; None: no shards."""

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, where descriptors are of other files."""
        return {**self.__dict__, "_opened_F": None}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if a sample has no label."""
        if len(self) == 0 or int(self.label_N.min()) == NO_LABEL:
            return 0
        return max(len(self.class_names), int(self.label_N.max()) + 1)

    def read(self, number: int) -> bytes:
        """Read the encoded bytes of one sample; safe to call from many threads.

        Raises:
            DataError: The file is gone, unreadable, of another size than it was, or too large.
        """
        where = int(self.file_N[number])
        if (length := int(self.length_N[number])) > MAX_BYTES:
            raise DataError(
                f"sample {self.names[number]!r} in {self.source} has {length:,} bytes, "
                f"{MAX_BYTES:,} are the most of a picture. Remove it from the data set."
            )
        offset = int(self.offset_N[number])
        if self.remote is not None and self.crc_N is not None and self.lead_N is not None:
            lead = int(self.lead_N[number])
            crc = int(self.crc_N[number])
            return self.remote.read(where, offset - lead, lead + length, crc)[lead:]
        crc = NO_CRC if self.crc_N is None else int(self.crc_N[number])
        lead = 0 if crc == NO_CRC or self.lead_N is None else int(self.lead_N[number])
        try:
            if self.sharded:
                data = self._file_pool.read(self.paths[where], offset - lead, lead + length)
                if crc not in (NO_CRC, zlib.crc32(data)):
                    self.paths[where].unlink(missing_ok=True)
                    raise DataError(
                        f"the copy {self.paths[where]} in the data folder is damaged and was "
                        "removed. Run the same command again: it is unpacked anew."
                    )
                data = data[lead:]
            else:
                descriptor = os.open(self.paths[where], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    data = os.pread(descriptor, length + 1, 0)
                finally:
                    os.close(descriptor)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"cannot read sample {self.names[number]!r}: {error}.") from None
        if len(data) != length:
            size = self.paths[where].stat().st_size if not self.sharded else len(data)
            raise DataError(
                f"sample {self.names[number]!r} in {self.paths[where]} has {size} bytes, "
                f"{length} were there when the data set was opened. Restore the file."
            )
        return data

    def locate(self, number_P: NDArray[np.int64]) -> tuple[I8, I8, I8]:
        """Find where samples are stored, for compiled code.

        Returns:
            Descriptor of each sample's file, or -1: only `read` has it; its first byte; its bytes,
            0 where no encoded picture is stored.
        """
        file_P, found_P = self.file_N[number_P], np.full(len(number_P), -1, np.int64)
        if self.sharded and self.remote is None:
            if self._opened_F is None:
                self._opened_F = np.full(len(self.paths), -1, np.int64)
            found_P = self._opened_F[file_P]
            if (found_P < 0).any():
                for file in set(file_P[found_P < 0].tolist()):
                    self._opened_F[file] = self._file_pool.descriptor(self.paths[file])
                found_P = self._opened_F[file_P]
        offset_P, length_P = self.offset_N[number_P], self.length_N[number_P]
        return found_P, offset_P.astype(np.int64), length_P.astype(np.int64)

    def recorded(self) -> dict[str, NDArray[Any]]:
        """Columns of a sample table that are known without reading an image: name → [N]."""
        return {"bytes": self.length_N}

    def compare(self, table: SampleTable, row: int) -> None:
        """Compare what is stored of a sample with its row of a cache's table, in whose order it is.

        Raises:
            DataError: It cannot be read.
            CacheMismatch: It has changed since the cache was made, or its size in pixels is not
                the table's.
        """
        from cache_tools.render import decode  # not for commands that decode nothing: numba

        data, key = self.read(row), table.keys[row]
        sample_table.check_digest(table, row, data)
        sides = int(table.height_N[row]), int(table.width_N[row])
        decode.check_sides(key, decode.size(data, key), sides)

    def pixels(self, number: int) -> NDArray[np.uint8] | None:
        """Return [H, W, 3] of a sample stored as pixels, which only a `.beton` has; else None."""
        return None

    def keys(self, kind: KeyKind | None = None) -> tuple[KeyKind, Sequence[str]]:
        """Return the kind, and [N] names that identify the samples in any copy of the data set.

        None takes the stem when it is unique in the data set.
        """
        stems: Sequence[str]
        if isinstance(self.names, TextColumn):
            stems = self.names.stems()
        else:
            stems = [name.rpartition("/")[2] for name in self.names]
        if kind is None:
            kind = "stem" if len(set(stems)) == len(stems) else "path"
        return kind, stems if kind == "stem" else self.names

    def subset(self, numbers: NDArray[np.int64]) -> Self:
        """Select samples, in this order."""
        return replace(
            self,
            names=text_column.take(self.names, numbers),
            file_N=self.file_N[numbers],
            offset_N=self.offset_N[numbers],
            length_N=self.length_N[numbers],
            label_N=self.label_N[numbers],
            crc_N=None if self.crc_N is None else self.crc_N[numbers],
            lead_N=None if self.lead_N is None else self.lead_N[numbers],
        )


def class_folders(names: Sequence[str]) -> list[str]:
    """Return the folder of each sample that is its class, "" for those outside of all.

    As timm has it, the folder that the image lies in; but a last level that is one name
    everywhere, as `images` in Tiny-ImageNet, is passed over.
    """
    parents = [name.rpartition("/")[0] for name in names]
    while len({*parents}) > 1 and len({parent.rpartition("/")[2] for parent in parents}) == 1:
        parents = [parent.rpartition("/")[0] for parent in parents]
    return [parent.rpartition("/")[2] for parent in parents]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Key of timm's order of classes: digits as numbers, capitals as small letters."""
    pieces: list[str | int] = [*re.split(r"(\d+)", name.lower())]
    pieces[1::2] = map(int, pieces[1::2])
    return pieces, name


def class_numbers(
    folders: set[str], training: bool = False, classes: Sequence[str] = ()
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the class of each folder, and the names of all classes in their order.

    The classes of the training split rule where they are known. Else folders are numbered in timm's
    order. Folders that are numbers from zero are the classes themselves, outside of a training
    split whichever of them are there (ImageNet-V2: 0..999), and have no names; but 1..n are n
    names counted from one.
    """
    if classes and folders <= {*classes}:
        return {name: i for i, name in enumerate(classes)}, tuple(classes)
    ordered = sorted(folders, key=natural_key)
    if folders and all(map(_NUMBER.fullmatch, folders)) and folders.isdisjoint(classes):
        numbers = [int(name) for name in ordered]
        from_one = numbers == list(range(1, len(numbers) + 1))
        if numbers == list(range(len(numbers))) or not (training or from_one):
            return {name: int(name) for name in folders}, ()
    return {name: i for i, name in enumerate(ordered)}, tuple(ordered)


def check_labels(images: ImageDataset) -> None:
    """Raise DataError if a label is beyond the names of the classes."""
    names = len(images.class_names)
    if (highest := int(images.label_N.max(initial=NO_LABEL))) >= names:
        raise DataError(
            f"{images.source} names {counted(names, 'class')} and has the label {highest}. Correct "
            "the class_names of its description."
        )


def of_classes(images: ImageDataset, classes: Sequence[str], source: object) -> ImageDataset:
    """Select the images of some classes, and number these in the order of the list.

    Classes without images keep their numbers, so that the heads of published networks fit.

    Raises:
        DataError: Its labels are more than its names.
    """
    check_labels(images)
    number = {name: i for i, name in enumerate(classes)}
    new = np.array([*(number.get(n, NO_LABEL) for n in images.class_names), NO_LABEL], np.int32)
    label_N = new[images.label_N]  # NO_LABEL is the last
    kept = np.flatnonzero(label_N != NO_LABEL)
    images = replace(images, label_N=label_N, class_names=tuple(classes))
    if left_out := len(label_N) - len(kept):
        log.warning(
            "%s: %s left out, of %s that %s does not name",
            images.source, counted(left_out, "image"),
            counted(int((new[:-1] == NO_LABEL).sum()), "class folder"), source,
        )  # fmt: skip
    return images.subset(kept)


def with_classes(images: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """Renumber the classes of a split as in the training split, by their names.

    Raises:
        DataError: Its labels are more than its names.
        CacheMismatch: It has a class that the training split has not.
    """
    names = images.class_names
    if not classes or not names or names == tuple(classes):
        return images
    check_labels(images)
    if strange := sorted({*names} - {*classes}):
        raise CacheMismatch(
            f"the validation split of {images.source} has the class {strange[0]!r}, the "
            "training split has not. Pass a data set whose splits have the same classes."
        )
    number_of = {name: number for number, name in enumerate(classes)}
    number = np.array([number_of[name] for name in names], dtype=np.int32)
    label = np.where(images.label_N == NO_LABEL, NO_LABEL, number[images.label_N])
    return replace(images, label_N=label, class_names=tuple(classes))
