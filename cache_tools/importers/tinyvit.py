"""TinyViT's saved logits: a folder per epoch, files per rank (microsoft/Cream; arXiv 2207.10666).

    SRC/logits_top{K}_epoch{E}/rank{R}-keys.txt     a key per line
    SRC/logits_top{K}_epoch{E}/rank{R}-values.bin   as many records: i4 seed, i2 class [K], f2 p [K]

An epoch becomes a view. TinyViT's own code draws a view from the seed, with an augmentation that
the files do not name: no other code can render these pixels, so the cache cannot be replayed. The
seeds are kept, so that `kdcache convert --to tinyvit` restores the files that TinyViT reads.

Shapes: N samples, B of them, K classes.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.importers import base
from cache_tools.importers.base import ArrayAllocator, RecordBlock, SourceInfo
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.sample_table import MAX_KEY, SampleTable
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

_EPOCH = re.compile(r"logits_top(\d{1,5})_epoch(\d{1,5})")
_RANK = re.compile(r"rank(\d{1,5})-values\.bin")
MOST_CLASSES = 32_767
"""A class id is an i2."""
_MOST_ABOVE_ONE = 1.001
_NOTE = (  # part of the spec: another text is another fingerprint
    "Nobody but TinyViT's own code, with the configuration, libraries and data order of the run, "
    "draws the views that the seeds stand for."
)


def record(kept: int) -> np.dtype[np.void]:
    """Return the dtype of a record of `kept` classes, 4 + 4K bytes."""
    return np.dtype([("seed", "<i4"), ("index", "<i2", (kept,)), ("p", "<f2", (kept,))])


class TinyVitFiles:
    """Saved logits of one folder."""

    def __init__(
        self, root: Path, images: ImageDataset, counted: Sequence[str] | None, num_classes: int
    ) -> None:
        """Find the epochs, a folder each.

        Images are in the order of a sample table, the names `counted` in that of their numbers;
        None when keys are names.

        Raises:
            DataError: There are no epochs, or they differ in K.
        """
        if num_classes > MOST_CLASSES:
            raise DataError(f"TinyViT's class ids end at {MOST_CLASSES}; here are {num_classes}.")
        kept, self._epochs = _epochs(root)
        self._num_classes, self._kept = num_classes, kept
        self._keys = _keys(images, counted)
        self._row = {key: i for i, key in enumerate(self._keys)}
        self.info = SourceInfo(
            len(self._epochs), kept, ImportedSpec("TinyViT", _NOTE, seeds=True), None, by_view=True
        )
        self._of_epoch = lru_cache(maxsize=1)(self._load)

    def read(
        self, rows: range, view_numbers: Sequence[int], table: SampleTable, arrays: ArrayAllocator
    ) -> Iterator[RecordBlock]:
        """Yield records; see `RecordSource`."""
        for view in view_numbers:
            records = self._of_epoch(view)[rows.start : rows.stop]
            index_BK, p_BK = records["index"].astype(np.int64), records["p"].astype(np.float32)
            names = [f"epoch {self._epochs[view].name}, key {self._keys[row]!r}" for row in rows]
            base.refuse_records(index_BK, p_BK, self._num_classes, names)
            _check_order(p_BK, names)
            if (records["seed"] < 0).any():
                at = int(np.flatnonzero(records["seed"] < 0)[0])
                raise DataError(f"{names[at]} has the invalid seed {records['seed'][at]}.")
            columns = imported.blank(len(rows), arrays.spec)
            columns["seed_B"] = records["seed"].astype(np.uint32)
            yield RecordBlock(index_BK, p_BK, ImportedViews(**columns))

    def _load(self, view: int) -> NDArray[np.void]:
        """Read the records of an epoch in the order of the table.

        Of a key that several ranks have (samplers pad with the first samples), the record of the
        highest rank is taken, as TinyViT's reader does when it has read all ranks in order.
        """
        folder, kind, row = self._epochs[view], record(self._kept), self._row
        found = np.zeros(len(self._keys), dtype=kind)
        there = np.zeros(len(self._keys), dtype=np.bool_)
        for values_path in _ranks(folder):
            keys, records = _rank(values_path, kind)
            try:
                rows = np.array([row[key] for key in keys], dtype=np.int64)
            except KeyError as error:
                raise DataError(
                    f"{values_path}: the key {error} is none of the data set's {len(row):,}. Pass "
                    "--data (and for numbers --dataset-index) of the data set it was made of."
                ) from None
            found[rows], there[rows] = records, True
        if not there.all():
            missing = self._keys[int(np.flatnonzero(~there)[0])]
            raise DataError(
                f"{folder} has records of {int(there.sum()):,} of {len(there):,} images (first "
                f"without: key {missing!r}). Fetch the files of all ranks."
            )
        return found


def numbered(root: Path) -> bool:
    """Return True if the first key is a number, as for an ImageFolder."""
    keys = _values_to_keys(_ranks(_epochs(root)[1][0])[0])
    with _opened(keys) as lines:
        return str(lines.readline(MAX_KEY + 1)).strip().isdecimal()


def _epochs(root: Path) -> tuple[int, list[Path]]:
    """Return K and the folders of consecutive epochs."""
    matches = [(m, p) for p in sorted(root.glob("logits_top*")) if (m := _EPOCH.fullmatch(p.name))]
    if not matches:
        raise DataError(f"there is no logits_top{{K}}_epoch{{E}} in {root}.")
    kept = {int(m[1]) for m, _ in matches}
    by_epoch = sorted((int(m[2]), p) for m, p in matches)
    numbers = [number for number, _ in by_epoch]
    if len(kept) != 1 or min(kept) < 1:
        raise DataError(f"{root} has records of {sorted(kept)} classes. Import one kind at a time.")
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        lost = min(set(range(numbers[0], numbers[-1])) - set(numbers), default=numbers[0])
        raise DataError(f"{root} lacks epoch {lost} between {numbers[0]} and {numbers[-1]}.")
    return kept.pop(), [path for _, path in by_epoch]


def _ranks(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _RANK.fullmatch(p.name))]
    if not found:
        raise DataError(f"there is no rank0-values.bin in {folder}.")
    return [path for _, path in sorted(found)]


def _rank(values: Path, kind: np.dtype[np.void]) -> tuple[list[str], NDArray[np.void]]:
    """Read keys and records of one rank, which must be equally many."""
    size, of_keys = values.stat().st_size, _values_to_keys(values)
    with _opened(of_keys) as lines:
        if (length := of_keys.stat().st_size) > (size // kind.itemsize + 1) * (MAX_KEY + 1):
            raise DataError(
                f"{of_keys} has {length:,} bytes, too many for the keys of the {size:,} bytes of "
                f"{values}. One of them is damaged: fetch both again."
            )
        keys = lines.read().split("\n")
    if keys.pop():
        raise DataError(f"{of_keys} does not end with a line break: it is cut short.")
    if size != len(keys) * kind.itemsize:
        raise DataError(
            f"{values} has {size:,} bytes; {len(keys):,} keys × {kind.itemsize} bytes are "
            f"{len(keys) * kind.itemsize:,}. It is cut short, or the folder's name has another K."
        )
    return keys, np.fromfile(values, dtype=kind)


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _values_to_keys(values: Path) -> Path:
    return values.with_name(values.name.replace("-values.bin", "-keys.txt"))


def _keys(images: ImageDataset, counted: Sequence[str] | None) -> list[str]:
    """Return TinyViT's key of each image: its number, or its stem."""
    if counted is None:
        return [name.rpartition("/")[2] for name in images.names]
    number = {name: str(i) for i, name in enumerate(counted)}
    return [number[name] for name in images.names]


def _check_order(p_BK: NDArray[np.float32], names: Sequence[str]) -> None:
    rising_B = (p_BK[:, 1:] > p_BK[:, :-1]).any(axis=1)
    wrong_B = rising_B | (p_BK.sum(axis=1, dtype=np.float64) > _MOST_ABOVE_ONE)
    if wrong_B.any():
        at = int(np.flatnonzero(wrong_B)[0])
        raise DataError(
            f"{names[at]}: its probabilities {p_BK[at].tolist()[:8]} do not fall, or add up to "
            "more than 1: it is damaged, or the folder's name has another K."
        )
