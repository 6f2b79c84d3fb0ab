"""An opened data set: WebDataset tar shards or an ImageFolder, with random access by number.

It is an index: for every sample its name, its file, its range of bytes in it, and its label. Bytes
are read on request (`read`), from any thread; tars are scanned once, by header, and nothing is
unpacked. Known layouts: timm's `_info.json` beside the tars, a folder of tars, a glob, a brace
pattern, split sub-folders, each of them behind a URL as well (`remote_shards`); and folders of
images named after their class, or numbered by it as ImageNet-V2 is published.

Shapes: N samples.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.file_pool import FilePool
from cache_tools.data.remote_shards import RemoteShards
from cache_tools.errors import DataError
from cache_tools.spec.dataset import NO_LABEL, KeyKind

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass
class ImageDataset:
    """An opened data set: N encoded images, by file and range of bytes."""

    source: str
    """Path, pattern or URL that was opened, for messages."""
    paths: list[Path]
    """Files: shards, or one per image."""
    names: list[str]
    """[N] path of the sample within the data set, without extension."""
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
    crc_N: NDArray[np.uint32] | None = field(default=None, repr=False)
    """CRC-32 of each image and of what is in front of it, of shards behind a URL."""
    lead_N: NDArray[np.int64] | None = field(default=None, repr=False)
    """Bytes in front of each image that its CRC-32 is of, too."""
    remote: RemoteShards | None = field(default=None, repr=False)
    """The shards behind a URL; `paths` is empty then."""
    _file_pool: FilePool = field(default_factory=FilePool, repr=False)

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
            DataError: The file is gone, unreadable or shorter than it was.
        """
        where = int(self.file_N[number])
        length = int(self.length_N[number])
        offset = int(self.offset_N[number])
        if self.remote is not None and self.crc_N is not None and self.lead_N is not None:
            lead = int(self.lead_N[number])
            crc = int(self.crc_N[number])
            return self.remote.read(where, offset - lead, lead + length, crc)[lead:]
        try:
            if self.sharded:
                data = self._file_pool.read(self.paths[where], offset, length)
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
        """Return [H, W, 3] of a sample stored as pixels, which only a `.beton` has; else None."""
        return None

    def keys(self, kind: KeyKind | None = None) -> tuple[KeyKind, list[str]]:
        """Return the kind, and [N] names that identify the samples in any copy of the data set.

        None takes the stem when it is unique in the data set.
        """
        stems = [name.rpartition("/")[2] for name in self.names]
        if kind is None:
            kind = "stem" if len(set(stems)) == len(stems) else "path"
        return kind, stems if kind == "stem" else list(self.names)

    def subset(self, numbers: NDArray[np.int64]) -> Self:
        """Select samples, in this order."""
        return replace(
            self,
            names=[self.names[i] for i in numbers],
            file_N=self.file_N[numbers],
            offset_N=self.offset_N[numbers],
            length_N=self.length_N[numbers],
            label_N=self.label_N[numbers],
            crc_N=None if self.crc_N is None else self.crc_N[numbers],
            lead_N=None if self.lead_N is None else self.lead_N[numbers],
        )


def classes(folders: set[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the class of each folder, and the names of all classes in their order.

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
