"""ImageNet+ and other data sets of Dataset Reinforcement (apple/ml-dr; arXiv 2303.08983).

    SRC/config.pth.tar   torch.save of the configuration of the run that made them
    SRC/{i}.pth.tar      torch.save of (i, list of V dictionaries)
    {"params": list of the transforms' parameters, "prob": (probabilities [K], class ids [K])}

i is the number of the image in torchvision's ImageFolder. Files of joblib (`joblib: true`) have the
same names and are read, too. Parameters name every operation: crop, flip, RandAugment, erasing, the
partner with its own parameters, mixup and cutmix. The teacher's tensors were augmented on a GPU,
the student's pictures by Pillow; ours differ from both by rounding.

Shapes: B samples, V views of a file, K classes, P sides.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.importers import base, torch_file, torchvision_ops
from cache_tools.importers.base import ArrayAllocator, RecordBlock, SourceInfo
from cache_tools.importers.safe_pickle import brief
from cache_tools.runtime import threads
from cache_tools.spec.imported import MAX_OPERATIONS, ImportedSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views.draw import LAMBDA_SCALE
from cache_tools.views.imported import ImportedViews

_ORDER = (
    "uint8", "resize", "center_crop", "random_crop", "random_resized_crop",
    "random_horizontal_flip", "rand_augment", "to_tensor", "random_erase", "normalize", "mixup",
    "cutmix",
)  # fmt: skip
_SILENT = {"uint8", "center_crop", "to_tensor", "normalize"}
"""Transforms of which no parameter is stored."""
_MOST = 1.001
_MOST_PIXELS = 4096
_READ = {
    "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase", "mixup",
    "cutmix",
}  # fmt: skip
Columns = dict[str, NDArray[Any]]
"""Attributes of `ImportedViews`, [views, samples, …]."""
Cell = tuple[int, ...]
"""Position in the columns: view, sample and, for two pictures, side."""
_NOTE = (  # part of the spec: another text is another fingerprint
    "Crops are Pillow's bilinear as theirs. The teacher saw torchvision's RandAugment on tensors: "
    "an operation here is within 1 of 255 of that; where a picture is turned or sheared, a few "
    "pixels are their neighbours."
)


class MlDrFiles:
    """Files of one reinforced data set."""

    def __init__(
        self, root: Path, images: ImageDataset, counted: Sequence[str], num_classes: int
    ) -> None:
        """Read the configuration and find the file of every image.

        Images are in the order of a sample table, the names `counted` in that of their numbers.

        Raises:
            DataError: The configuration has other transforms, or files and images do not match.
        """
        self._root, self._num_classes = root, num_classes
        self._number = _numbers(root, images, counted)
        row = {number: i for i, number in enumerate(self._number)}
        self._row_of = np.array([row[i] for i in range(len(row))], dtype=np.int64)
        config = _config(root)
        self._entries = _entries(config, root)
        first = _load(self._path(0), self._number[0])
        self._top_k = _top_k(first[0]["prob"], self._path(0))
        self.info = SourceInfo(len(first), self._top_k, *self._specs(config))

    def read(
        self, rows: range, view_numbers: Sequence[int], table: SampleTable, arrays: ArrayAllocator
    ) -> Iterator[RecordBlock]:
        """Yield records; see `RecordSource`."""
        shape = len(view_numbers), len(rows)
        index = arrays.zeros((*shape, self._top_k), "i4")
        p, columns = arrays.zeros(index.shape, "f4"), arrays.blank(*shape)

        def one(at: int) -> None:
            path = self._path(rows[at])
            views = _load(path, self._number[rows[at]])
            if len(views) != self.info.num_views:
                raise DataError(
                    f"{path} has {len(views)} views, the first has {self.info.num_views}."
                )
            for g, view in enumerate(view_numbers):
                try:
                    p[g, at], index[g, at] = _target(views[view], self._top_k)
                    self._put(views[view]["params"], columns, (g, at), rows[at])
                except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
                    raise DataError(
                        f"{path}, view {view}, is not what ml-dr writes with its configuration: "
                        f"{str(error)[:200]}."
                    ) from None

        with ThreadPoolExecutor(threads.cpu_count()) as pool:
            for _ in pool.map(one, range(len(rows))):
                pass
        names = [str(self._path(row)) for row in rows]
        for g in range(len(view_numbers)):
            index_BK, p_BK = index[g].astype(np.int64), np.array(p[g])
            base.refuse_records(index_BK, p_BK, self._num_classes, names)
            params = ImportedViews(**{name: np.array(c[g]) for name, c in columns.items()})
            yield RecordBlock(index_BK, p_BK, params)

    def _path(self, row: int) -> Path:
        return self._root / f"{self._number[row]}.pth.tar"

    def _specs(self, config: dict[str, Any]) -> tuple[ImportedSpec, ViewSpec]:
        mixed = 1.0 if self._mixes else 0.0
        layers = config["rand_augment"].get("num_ops", 2) if "rand_augment" in config else 0
        size = config["random_resized_crop"].get("size")
        good = type(size) is int and 0 < size <= _MOST_PIXELS and type(layers) is int
        if not good or not 0 <= layers <= MAX_OPERATIONS:
            raise DataError(
                f"{self._root}/config.pth.tar has views of {brief(size)} pixels with "
                f"{brief(layers)} operations, which cannot be rendered."
            )
        views = ViewSpec(
            size, hflip=0.0, interpolation="bilinear", fill=(0, 0, 0), mixup=mixed, cutmix=mixed
        )
        return ImportedSpec("ml-dr", _NOTE, layers, int("random_erase" in config)), views

    @property
    def _mixes(self) -> bool:
        return "mixup" in self._entries or "cutmix" in self._entries

    def _put(self, params: Any, columns: Columns, at: Cell, row: int) -> None:
        """Write the parameters of one view into the columns, at one place."""
        partner = None
        if type(params) is not list:
            raise ValueError(f"its parameters are a {type(params).__name__}, not compressed ones")
        if self._mixes:
            partner, *params = params
        if len(params) != len(self._entries):
            raise ValueError(f"{len(params)} parameters for {', '.join(self._entries)}")
        columns["partner_B"][at] = row if partner is None else self._partner(partner)
        of = dict(zip(self._entries, params, strict=True))
        for side in range(1 if partner is None else 2):
            for name in self._entries:
                if name not in ("mixup", "cutmix"):
                    value = of[name] if partner is None else of[name][side]
                    _PUT[name](value, columns, (*at, side), self.info.views.size)  # type: ignore[union-attr]
        if self._mixes and partner is None:  # its own partner: the other side is the same
            for name in ("box_BP4", "flip_BP", "codes_BPL", "arguments_BPL6", "erase_BPE4"):
                columns[name][(*at, 1)] = columns[name][(*at, 0)]
        if partner is not None:
            _put_mixing(of.get("mixup"), of.get("cutmix"), columns, at)

    def _partner(self, number: Any) -> int:
        if type(number) is not int or not 0 <= number < len(self._row_of):
            raise ValueError(f"its partner is image {brief(number)} of {len(self._row_of)}")
        return int(self._row_of[number])


def _top_k(prob: Any, path: Path) -> int:
    """Return K, the classes of the first record."""
    if type(prob) not in (tuple, list) or not prob or type(prob[0]) is not list:
        raise DataError(f"{path} has {brief(prob)} for probabilities and classes.")
    return len(prob[0])


def _put_crop(value: Any, columns: Columns, at: Cell, _: int) -> None:
    columns["box_BP4"][at] = _integers(value, 4)


def _put_flip(value: Any, columns: Columns, at: Cell, _: int) -> None:
    if type(value) is not bool:
        raise ValueError(f"its flip is {brief(value)}")
    columns["flip_BP"][at] = value


def _put_operations(value: Any, columns: Columns, at: Cell, size: int) -> None:
    for layer, (number, magnitude) in enumerate(value or ()):
        code, arguments = torchvision_ops.operation(number, float(magnitude), size)
        columns["codes_BPL"][(*at, layer)] = code
        columns["arguments_BPL6"][(*at, layer)] = arguments


def _put_erased(value: Any, columns: Columns, at: Cell, size: int) -> None:
    if value is None:
        return
    top, left, height, width = _integers(value, 4)
    if top != -1:  # no box was found that fits
        columns["erase_BPE4"][(*at, 0)] = top, left, height, width


def _put_mixing(mixup: Any, cutmix: Any, columns: Columns, at: Cell) -> None:
    """Write λ, the own share, and the box of cutmix, rows first, which is pasted over mixup."""
    if mixup is not None:
        if not 0 <= float(mixup) <= 1:
            raise ValueError(f"mixup by {mixup}")
        columns["weight_B"][at] = round(float(mixup) * LAMBDA_SCALE)
    if cutmix is not None:
        top, left, bottom, right = _integers(cutmix[1:], 4)
        if bottom > top and right > left:
            columns["cut_B4"][at] = top, left, bottom - top, right - left


_PUT = {
    "random_resized_crop": _put_crop,
    "random_horizontal_flip": _put_flip,
    "rand_augment": _put_operations,
    "random_erase": _put_erased,
}


def _integers(value: Any, count: int) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"{brief(value)} for {count} numbers")
    if not all(type(v) is int and abs(v) < 2**31 for v in value):
        raise ValueError(f"{brief(value)} are no integers")
    return list(value)


def _target(record: Any, top_k: int) -> tuple[list[float], list[int]]:
    p, ids = record["prob"]
    if not len(p) == len(ids) == top_k:
        raise ValueError(
            f"{len(p)} probabilities of {len(ids)} classes, the first file has {top_k}"
        )
    if not all(type(v) in (float, int) and 0 <= v <= _MOST for v in p):
        raise ValueError(f"probabilities {brief(p)}")
    return p, _integers(ids, top_k)


def _load(path: Path, number: int) -> list[Any]:
    """Read the views of one file."""
    value = torch_file.load(path)
    if not (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and isinstance(value[1], list)
        and value[1]
        and all(isinstance(v, dict) and {"params", "prob"} <= v.keys() for v in value[1])
    ):
        raise DataError(f"{path} holds no (number, list of views) as ml-dr's files do.")
    if type(value[0]) is not int or value[0] != number:
        raise DataError(f"{path} is of image {brief(value[0])}, but its name has {number}.")
    return value[1]


def _numbers(root: Path, images: ImageDataset, counted: Sequence[str]) -> list[int]:
    """Return the number of each image; DataError unless each has a file and no file is left."""
    names = {path.name for path in root.glob("*.pth.tar")} - {"config.pth.tar"}
    expected = {f"{i}.pth.tar" for i in range(len(counted))}
    if names != expected:
        odd = min(names ^ expected)
        which = "has no image" if odd in names else "is missing"
        raise DataError(
            f"{root} has {len(names):,} files for {len(counted):,} images of {images.source} "
            f"(first difference: {odd} {which}). torchvision's ImageFolder counts them: one more "
            "or less shifts all others."
        )
    number = {name: i for i, name in enumerate(counted)}
    return [number[name] for name in images.names]


def _config(root: Path) -> dict[str, Any]:
    """Read the enabled transforms, by name."""
    path = root / "config.pth.tar"
    config = torch_file.load(path)
    try:
        reinforce = config["reinforce"]
        found = {
            str(name): dict(values or {})
            for name, values in reinforce["image_augmentation"].items()
            if (values or {}).get("enable", True)
        }
        compressed = bool(reinforce.get("compress", False))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is no configuration of ml-dr's reinforce.py ({str(error)[:200]})."
        ) from None
    if not compressed:
        raise DataError(f"{path} has compress: false; such parameters are not read.")
    return found


def _entries(config: dict[str, Any], root: Path) -> list[str]:
    """Return the transforms in the order in which their parameters are stored."""
    path = root / "config.pth.tar"
    unknown = sorted(set(config) - _READ - _SILENT)
    if unknown or "random_resized_crop" not in config or "center_crop" in config:
        raise DataError(
            f"{path} has the transforms {', '.join(sorted(config))}. Views can be replayed of a "
            "random_resized_crop with flip, RandAugment, erasing and mixing, not of others."
        )
    how = config["random_resized_crop"].get("interpolation", "bilinear")
    if type(how) is not str or how != "bilinear":
        raise DataError(f"{path} has a crop that is {brief(how)}, not bilinear.")
    return [name for name in _ORDER if name in config and name not in _SILENT]
