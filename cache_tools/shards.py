"""Where images come from: WebDataset tar shards or an ImageFolder, with random access by number.

An opened data set is an index: for every sample its name, the file it lies in, where, and its
label. Bytes are read when they are asked for (`read`), from any thread; tars are scanned once, by
header, and nothing is unpacked. Known layouts: timm's `_info.json` beside the tars, a folder of
tars, a glob, split sub-folders, and folders of images named after their class.

Shapes: N samples.
"""

import glob
import json
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray

from cache_tools.errors import DataError, UsageError
from cache_tools.spec import KeyKind

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
    "teacher": ("teacher",),
}
NO_LABEL = -1


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
    """Names of the classes of an ImageFolder, in the order of the labels."""
    sharded: bool = True
    """Whether a file holds many images (tar) or is one itself."""
    _open: dict[int, int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

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
        try:
            if self.sharded:
                data = os.pread(self._descriptor(where), length, int(self.offset_N[number]))
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
        )

    def _descriptor(self, where: int) -> int:
        with self._lock:
            if where not in self._open:
                self._open[where] = os.open(self.paths[where], os.O_RDONLY)
            return self._open[where]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def open_images(source: str, split: str) -> Images:
    """Open a data set.

    Args:
        source: A folder (of tars, of images, or of splits), a tar, or a glob of tars.
        split: "train", "validation" or "teacher": the part of a data set that has parts.

    Raises:
        UsageError: Nothing there.
        DataError: A shard that cannot be read, or no image in it.
    """
    shards = _find_shards(source, split)
    images = _tars(source, shards) if shards else _folder(source, split)
    if len(images) == 0:
        raise DataError(f"there is no image in {source} ({split} split).")
    return images


def has_split(source: str, split: str) -> bool:
    """Whether the data set at `source` has images of its own for `split`."""
    folder = Path(source)
    info = _info(folder)
    if info is not None:
        return any(name in info for name in SPLITS[split])
    return any((folder / name).is_dir() for name in SPLITS[split])


def _info(folder: Path) -> dict[str, Any] | None:
    """Splits of timm's `_info.json`, or None when there is none."""
    path = folder / "_info.json"
    if not path.is_file():
        return None
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return {str(k): _expand(v["filenames"]) for k, v in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a WebDataset description as timm writes it ({error!r})."
        ) from None


def _expand(filenames: str | list[str]) -> list[str]:
    """Brace patterns (`train-{000..127}.tar`) to names, as WebDataset writes them."""
    patterns = [filenames] if isinstance(filenames, str) else filenames
    return [name for pattern in patterns for name in braceexpand(str(pattern))]


def _find_shards(source: str, split: str) -> list[Path]:
    folder = Path(source)
    if any(c in source for c in "*?[{"):
        return sorted(Path(file) for name in _expand(source) for file in glob.glob(name))  # noqa: PTH207 - absolute
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"there is no data set at {source}. DATA is a folder of shards or images.")
    if (info := _info(folder)) is not None:
        names = next((info[n] for n in SPLITS[split] if n in info), None)
        if names is None:
            raise UsageError(f"{source}/_info.json has no {split} split, only {', '.join(info)}.")
        return [folder / Path(name).name for name in names]
    return sorted(_split_folder(folder, split).glob("*.tar"))


def _split_folder(folder: Path, split: str) -> Path:
    """The sub-folder of this split, or the folder itself when it has none."""
    return next((folder / n for n in SPLITS[split] if (folder / n).is_dir()), folder)


def _tars(source: str, shards: list[Path]) -> Images:
    names: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    for number, shard in enumerate(shards):
        for name, offset, length, label in _tar_samples(shard):
            names.append(name)
            rows.append((number, offset, length, label))
    return _images(source, shards, names, rows, None)


def _tar_samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset, length and label of the images of one shard, in its order."""
    try:
        with tarfile.open(shard, "r:") as tar, shard.open("rb") as raw:
            image: dict[str, tuple[int, int]] = {}
            label: dict[str, int] = {}
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                stem, _, extension = file.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                extension = "." + extension.lower().rpartition(".")[2]
                if extension in IMAGES:
                    image[name] = (member.offset_data, member.size)
                elif extension == ".cls":
                    raw.seek(member.offset_data)
                    label[name] = int(raw.read(min(member.size, 32)))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"cannot read the shard {shard}: {error}. Fetch or write it again."
        ) from None
    for name, (offset, length) in image.items():
        yield name, offset, length, label.get(name, NO_LABEL)


def _folder(source: str, split: str) -> Images:
    """An ImageFolder: the first level of folders names the classes."""
    root = _split_folder(Path(source), split)
    files = sorted(_walk(root))
    folders = [file.relative_to(root).parts[0] for file in files if file.parent != root]
    classes = tuple(sorted(set(folders))) if len(folders) == len(files) else ()
    number = {name: i for i, name in enumerate(classes)}
    names, rows = [], []
    for i, file in enumerate(files):
        relative = file.relative_to(root)
        names.append(relative.with_suffix("").as_posix())
        rows.append((i, 0, file.stat().st_size, number.get(relative.parts[0], NO_LABEL)))
    return _images(source, files, names, rows, classes)


def _walk(root: Path) -> Iterable[Path]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            if Path(file).suffix.lower() in IMAGES and not file.startswith("."):
                yield Path(folder) / file


def _images(
    source: str,
    paths: list[Path],
    names: list[str],
    rows: list[tuple[int, int, int, int]],
    classes: tuple[str, ...] | None,
) -> Images:
    """An index from its rows (file, offset, length, label); `classes` None for tars."""
    file, offset, length, label = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Images(
        source,
        paths,
        names,
        file.astype(np.int32),
        offset,
        length,
        label.astype(np.int32),
        classes or (),
        sharded=classes is None,
    )
