"""FKD's soft labels: a file per image with a few hundred crops (szq0214/FKD; arXiv 2112.01528).

    SRC/train/<wnid>/<stem>.tar   torch.save of [coords, flip, labels]: no tar in spite of its name
    coords  f4 or f2 [V, 4]       top/H, left/W, height/H, width/W of the original picture
    flip    bool [V]
    labels  f4 or f2 [V, 2, K]    class ids as numbers, then probabilities; "smoothing" has [V, 2]

The boxes of f4 files are recovered to the pixel. Their distance from whole pixels is the identity
test: a picture of another size gives other boxes. Those of f2 files can be off by a pixel or two on
large pictures, and are clipped to them.

Shapes: B samples, V views of a file, K classes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.importers import base, torch_file
from cache_tools.importers.base import ArrayAllocator, RecordBlock, SourceInfo
from cache_tools.numerics.array_types import F8
from cache_tools.runtime import threads
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

_WHOLE = 0.05
"""Largest distance of an edge from a whole pixel in fp32, whose rounding is a hundredth of it."""
_NOTE = (  # part of the spec: another text is another fingerprint
    "The boxes are those the teacher saw, at its own size and resampling, which FKD's files do not "
    "say (its command has 475 pixels and bicubic). Here they are resized as FKD's student is shown "
    "them: bilinear, by Pillow."
)
_EXACT_IN_F2 = 2048


class FkdFiles:
    """The files of one folder of soft labels."""

    def __init__(self, root: Path, images: ImageDataset, num_classes: int, size: int) -> None:
        """Find the file of every image, below `train` in `root` or in `root` itself.

        Images are in the order of a sample table; views have `size` × `size` pixels.

        Raises:
            DataError: An image has no file, or a file has no image.
        """
        folder = root / "train" if (root / "train").is_dir() else root
        self._paths = _match(folder, images)
        self._num_classes = num_classes
        coords, _, labels = _load(self._paths[0])
        self._narrow = coords.dtype == np.float16
        if self._narrow and num_classes > _EXACT_IN_F2:
            raise DataError(
                f"{self._paths[0]} has half-precision class ids, which are exact up to "
                f"{_EXACT_IN_F2}; there are {num_classes} classes."
            )
        spec = ImportedSpec("FKD", _NOTE)
        views = ViewSpec(size=size, hflip=0.0, interpolation="bilinear")
        self.info = SourceInfo(len(coords), labels.shape[2], spec, views)

    def read(
        self, rows: range, view_numbers: Sequence[int], table: SampleTable, arrays: ArrayAllocator
    ) -> Iterator[RecordBlock]:
        """Yield records; see `RecordSource`."""
        names = [str(self._paths[row]) for row in rows]
        own, shape = slice(rows.start, rows.stop), (len(view_numbers), len(rows))
        coords, flip = arrays.zeros((*shape, 4), "f4"), arrays.zeros(shape, "u1")
        labels = arrays.zeros((*shape, 2, self.info.top_k), "f4")
        sides = table.height_N[own].astype(np.float64), table.width_N[own].astype(np.float64)

        def one(at: int) -> None:
            found = self._some(self._paths[rows[at]], np.array(view_numbers))
            coords[:, at], flip[:, at], labels[:, at] = found

        with ThreadPoolExecutor(threads.cpu_count()) as pool:
            for _ in pool.map(one, range(len(rows))):
                pass
        for g in range(len(view_numbers)):
            ids_BK, p_BK = labels[g, :, 0].astype(np.float64), labels[g, :, 1].astype(np.float32)
            index_BK = _whole_ids(ids_BK, names)
            base.refuse_records(index_BK, p_BK, self._num_classes, names)
            columns = imported.blank(len(rows), arrays.spec)
            box_B4 = boxes(coords[g].astype(np.float64), *sides, self._narrow, names)
            columns["box_BP4"], columns["flip_BP"] = box_B4[:, None], flip[g][:, None]
            yield RecordBlock(index_BK, p_BK, ImportedViews(**columns))

    def _some(self, path: Path, at: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        coords, flip, labels = _load(path)
        shape = len(coords), labels.shape[2], coords.dtype == np.float16
        if shape != (self.info.num_views, self.info.top_k, self._narrow):
            raise DataError(
                f"{path} has {shape[0]} crops of {shape[1]} classes, {self._paths[0]} has "
                f"{self.info.num_views} of {self.info.top_k}, or one is in half precision: they "
                "are not of one run of FKD's generator."
            )
        return coords[at], flip[at], labels[at]


def boxes(
    coords_B4: F8, height_B: F8, width_B: F8, narrow: bool, names: Sequence[str]
) -> NDArray[np.int32]:
    """Convert boxes (top/H, left/W, height/H, width/W; `narrow`: in half precision) to pixels.

    Rounded as by Pillow's `crop`, to top, left, height, width; `names` of files are for messages.

    Raises:
        DataError: A box does not fit a picture of this size.
    """
    top, left = coords_B4[:, 0] * height_B, coords_B4[:, 1] * width_B
    edges_B4 = np.stack(
        [top, left, top + coords_B4[:, 2] * height_B, left + coords_B4[:, 3] * width_B], axis=1
    )
    with np.errstate(invalid="ignore"):
        whole_B4 = np.rint(edges_B4)
        sides_B4 = np.stack([height_B, width_B] * 2, axis=1)
        slack = np.ceil(sides_B4 / 1024) if narrow else np.zeros_like(sides_B4)
        wrong_B4 = ~((whole_B4 >= 0) & (whole_B4 <= sides_B4 + slack))
        if not narrow:
            wrong_B4 |= np.abs(edges_B4 - whole_B4) > _WHOLE
    if wrong_B4.any():
        at = int(np.flatnonzero(wrong_B4.any(axis=1))[0])
        raise DataError(
            f"{names[at]} has the box {np.round(edges_B4[at], 2).tolist()} (edges in pixels), "
            f"which is none of a picture of {height_B[at]:.0f}×{width_B[at]:.0f}. These soft "
            "labels are of another picture or another size of it; pass --data with the originals."
        )
    whole_B4 = np.minimum(whole_B4, sides_B4)
    top, left, bottom, right = whole_B4.T
    return np.stack([top, left, bottom - top, right - left], axis=1).astype(np.int32)


def _match(folder: Path, images: ImageDataset) -> list[Path]:
    """Match a file to each image by class folder and stem, or by stem without class folders."""
    found: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    for file in sorted(folder.glob("*/*.tar")):
        found[f"{file.parent.name}/{file.stem}"] = stems[file.stem] = file
    if not found:
        raise DataError(
            f"there is no CLASS/IMAGE.tar in {folder}: these are no soft labels of FKD."
        )
    unique = len(stems) == len(found)
    paths: list[Path] = []
    for name in images.names:
        *above, last = name.split("/")
        stem = last.partition(".")[0]  # FKD cuts names at their first dot
        by_stem = stems.get(stem) if unique and not above else None
        path = found.get(f"{above[-1]}/{stem}", by_stem) if above else by_stem
        if path is None:
            raise DataError(
                f"the image {name!r} of {images.source} has no soft label in {folder}, which has "
                f"{len(found):,} for {len(images):,} images. Every image needs its own."
            )
        paths.append(path)
    if len(set(paths)) != len(found):
        extra = min(set(found.values()) - set(paths), default=folder)
        raise DataError(
            f"{folder} has {len(found):,} soft labels for {len(images):,} images of "
            f"{images.source}; {extra} is of none. Pass --data with the data set they were made of."
        )
    return paths


def _load(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Read coordinates [V, 4], flips [V] and labels [V, 2, K] of a file."""
    value = torch_file.load(path)
    if type(value) is not list or len(value) != 3:
        raise DataError(f"{path} holds no list of coordinates, flips and labels as FKD's do.")
    coords, flip, labels = value[0], np.asarray(_flips(value[1], path)), value[2]
    for name, array in (("coordinates", coords), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: its {name} are no numpy array but a {type(array).__name__}.")
    count = len(coords) if coords.ndim else 0
    if labels.ndim == 1:
        raise DataError(
            f"{path} has hard labels, one class a crop: there is no distribution to learn from. "
            "Import a cache of label type marginal_smoothing_k5, marginal_smoothing_k10 or "
            "smoothing."
        )
    labels = labels[:, :, None] if labels.ndim == 2 else labels
    fits = coords.shape == (count, 4) and flip.shape == (count,) and count > 0
    floats = all(array.dtype.kind == "f" and array.itemsize <= 4 for array in (coords, labels))
    if not (fits and floats and labels.ndim == 3 and labels.shape[:2] == (count, 2)):
        raise DataError(
            f"{path} has coordinates {coords.dtype} {coords.shape}, flips {flip.shape} and labels "
            f"{labels.dtype} {labels.shape}; FKD's are floats [V, 4], [V] and floats [V, 2, K]."
        )
    return coords, flip, labels


def _flips(value: Any, path: Path) -> list[bool]:
    """Convert flips of current files (bool array) and of older ones (a list, numbers 0 and 1)."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    numbers = type(values) is list and all(type(v) in (bool, int, float) for v in values)
    if not numbers or not all(v in (0, 1) for v in values):
        raise DataError(f"{path}: its flips are neither true nor false.")
    return [bool(v) for v in values]


def _whole_ids(ids_BK: F8, names: Sequence[str]) -> NDArray[np.int64]:
    whole_BK = np.isfinite(ids_BK) & (ids_BK == np.rint(ids_BK)) & (np.abs(ids_BK) < 2**31)
    wrong_B = ~whole_BK.all(axis=1)
    if wrong_B.any():
        at = int(np.flatnonzero(wrong_B)[0])
        raise DataError(f"{names[at]} has class ids that are not whole: {ids_BK[at].tolist()[:8]}.")
    return ids_BK.astype(np.int64)
