"""Where images come from: WebDataset tar shards or an ImageFolder, with random access by number.

An opened data set is an index: for every sample its name, the file it lies in, where, and its
label. Bytes are read when they are asked for (`read`), from any thread; tars are scanned once, by
header, and nothing is unpacked. Known layouts: timm's `_info.json` beside the tars, a folder of
tars, a glob, a brace pattern, split sub-folders, each of them behind a URL as well (streamed.py);
and folders of images named after their class, or numbered by it as ImageNet-V2 is published.

Shapes: N samples.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import info_json, local_index, sources
from cache_tools.data.file_pool import Descriptors
from cache_tools.data.info_json import SPLITS
from cache_tools.data.remote_shards import Streamed
from cache_tools.data.sources import describe, resolve
from cache_tools.data.tar_index import IMAGES, TarIndex
from cache_tools.errors import DataError
from cache_tools.spec.dataset import NO_LABEL, KeyKind
from cache_tools.storage.fsspec_client import Remote

__all__ = [
    "IMAGES",
    "SPLITS",
    "Images",
    "describe",
    "has_split",
    "open_images",
    "resolve",
]
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass
class Images:
    """An opened data set: N encoded images and where each of them lies."""

    source: str
    """What was opened, for messages."""
    paths: list[Path]
    """Files: shards, or one per image."""
    names: list[str]
    """[N] path of the sample within the data set, without extension."""
    file_N: NDArray[np.int32]
    """Which of `paths` holds the sample."""
    offset_N: NDArray[np.int64]
    """Where its bytes begin in that file."""
    length_N: NDArray[np.int64]
    """How many bytes it has."""
    label_N: NDArray[np.int32]
    """Class, or NO_LABEL."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the labels; none when numbered or not recorded."""
    sharded: bool = True
    """Whether a file holds many images (tar) or is one itself."""
    crc_N: NDArray[np.uint32] | None = field(default=None, repr=False)
    """CRC-32 of each image, of shards behind a URL."""
    remote: Streamed | None = field(default=None, repr=False)
    """The shards behind a URL; `paths` is empty then."""
    _descriptors: Descriptors = field(default_factory=Descriptors, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes the labels speak of; 0 when a sample has no label."""
        if len(self) == 0 or int(self.label_N.min()) == NO_LABEL:
            return 0
        return max(len(self.class_names), int(self.label_N.max()) + 1)

    def read(self, number: int) -> bytes:
        """Encoded bytes of one sample; safe to call from many threads.

        Raises:
            DataError: The file is gone, unreadable or shorter than it was.
        """
        where = int(self.file_N[number])
        length = int(self.length_N[number])
        offset = int(self.offset_N[number])
        if self.remote is not None and self.crc_N is not None:
            return self.remote.read(where, offset, length, int(self.crc_N[number]))
        try:
            if self.sharded:
                data = self._descriptors.read(self.paths[where], offset, length)
            else:
                data = self.paths[where].read_bytes()
        except OSError as error:
            raise DataError(f"cannot read sample {self.names[number]!r}: {error}.") from None
        if len(data) != length:
            raise DataError(
                f"sample {self.names[number]!r} in {self.paths[where]} has {len(data)} bytes, "
                f"{length} were there when the data set was opened. Restore the file."
            )
        return data

    def pixels(self, number: int) -> NDArray[np.uint8] | None:
        """[H, W, 3] of a sample that is stored as pixels, which only a `.beton` has; else None."""
        return None

    def keys(self, kind: KeyKind | None = None) -> tuple[KeyKind, list[str]]:
        """Names that identify the samples wherever they lie.

        Args:
            kind: "stem" or "path"; None takes the stem when it is unique in the data set.

        Returns:
            The kind, and the [N] keys.
        """
        stems = [name.rpartition("/")[2] for name in self.names]
        if kind is None:
            kind = "stem" if len(set(stems)) == len(stems) else "path"
        return kind, stems if kind == "stem" else list(self.names)

    def subset(self, numbers: NDArray[np.int64]) -> "Images":
        """The same data set with only these samples, in this order."""
        names = [self.names[i] for i in numbers]
        return Images(
            self.source,
            self.paths,
            names,
            self.file_N[numbers],
            self.offset_N[numbers],
            self.length_N[numbers],
            self.label_N[numbers],
            self.class_names,
            self.sharded,
            None if self.crc_N is None else self.crc_N[numbers],
            self.remote,
            self._descriptors,
        )


def open_images(source: str, split: str, containers: bool = True) -> Images:
    """Open a data set.

    Args:
        source: A folder (of tars, of images, or of splits), a tar, a glob or a brace pattern of
            tars; a `.beton`; or a URL of a folder or of tars that fsspec can read.
        split: "train", "validation" or "teacher": the part of a data set that has parts.
        containers: Whether a `.beton` in a folder stands for what lies beside it.

    Raises:
        UsageError: Nothing there, or not all of it.
        DataError: A shard that cannot be read, or no image in it.
    """
    from cache_tools.data import beton  # which knows Images, so that it cannot be imported above

    if "://" in source:
        images = _streamed(source, split)
    elif containers and (file := beton.find(source, split)) is not None:
        return beton.open_beton(file)
    else:
        place = sources.find_local(source, split)
        images = _tars(source, place) if place else _folder(source, split)
    if len(images) == 0:
        raise DataError(f"there is no image in {source} ({split} split).")
    return images


def has_split(source: str, split: str) -> bool:
    """Whether the data set at `source` has images of its own for `split`."""
    from cache_tools.data import beton

    if "://" not in source and (file := beton.find(source, split)) is not None:
        return split == "train" or file != Path(source)
    return sources.has_split(source, split)


def _tars(source: str, place: sources.Place) -> Images:
    paths = [Path(place.root) / name for name in place.names]
    return _indexed(source, place, paths, local_index.indices(paths), None)


def _streamed(source: str, split: str) -> Images:
    place = sources.find_remote(source, split)
    streamed = Streamed(Remote(place.root), place.names, source)
    return _indexed(source, place, [], streamed.indices(place.split.indexed), streamed)


def _indexed(
    source: str,
    place: sources.Place,
    paths: list[Path],
    found: list[TarIndex],
    remote: Streamed | None,
) -> Images:
    """One data set of the indices of its shards."""
    counts = [len(index.names) for index in found]
    if place.info is not None and place.split.lengths:
        info_json.check_counts(place.info.where, place.split, place.names, counts)
    crc = [index.crc_N for index in found if index.crc_N is not None]
    return Images(
        source,
        paths,
        [name for index in found for name in index.names],
        np.repeat(np.arange(len(found), dtype=np.int32), counts),
        np.concatenate([index.offset_N for index in found]),
        np.concatenate([index.length_N for index in found]),
        np.concatenate([index.label_N for index in found]),
        place.info.class_names if place.info is not None else (),
        crc_N=np.concatenate(crc) if remote is not None else None,
        remote=remote,
    )


def _folder(source: str, split: str) -> Images:
    """An ImageFolder: the first level of folders names the classes."""
    root = sources.split_folder(Path(source), split)
    files = sorted(_walk(root))
    folders = [file.relative_to(root).parts[0] for file in files if file.parent != root]
    number, class_names = classes(set(folders)) if len(folders) == len(files) else ({}, ())
    names, rows = [], []
    for i, file in enumerate(files):
        relative = file.relative_to(root)
        names.append(relative.with_suffix("").as_posix())
        rows.append((i, file.stat().st_size, number.get(relative.parts[0], NO_LABEL)))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    zeros = np.zeros(len(rows), dtype=np.int64)
    where, label = columns[:, 0].astype(np.int32), columns[:, 2].astype(np.int32)
    return Images(
        source, files, names, where, zeros, columns[:, 1], label, class_names, sharded=False
    )


def classes(folders: set[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class of each folder, and the names of all classes in the order of their numbers.

    Folders that are numbers are the classes themselves, whichever of them are there (ImageNet-V2:
    0..999, "10" after "9"), and have no names; but 1..n are n names counted from one. All others
    are sorted.
    """
    if folders and all(_NUMBER.fullmatch(name) for name in folders):
        ordered = sorted(folders, key=int)
        if [int(name) for name in ordered] != list(range(1, len(ordered) + 1)):
            return {name: int(name) for name in folders}, ()
    else:
        ordered = sorted(folders)
    return {name: i for i, name in enumerate(ordered)}, tuple(ordered)


def _walk(root: Path) -> Iterable[Path]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            if Path(file).suffix.lower() in IMAGES and not file.startswith("."):
                yield Path(folder) / file
