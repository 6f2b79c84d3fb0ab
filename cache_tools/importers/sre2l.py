"""SRe2L's soft labels: a file per batch of an epoch (VILA-Lab/SRe2L; arXiv 2306.13092).

    SRC/epoch_<e>/batch_<b>.tar   torch.save of [coords, flip, mix_index, mix_lam, mix_bbox, logits]
    coords     f4 [B, 4]          top/H, left/W, height/H, width/W of the original picture
    flip       bool [B]
    mix_index  i8 [B]             place of the partner in the batch; none of these three: not mixed
    mix_lam    number             own share of mixup; of cutmix the box counts
    mix_bbox   4 numbers          rows and columns of cutmix: top, left, bottom, right
    logits     f2 or f4 [B, C]

No file says which images are in a batch: torch's RandomSampler, seeded by their `--fkd-seed`, draws
an order of the ImageFolder twice an epoch and uses the first. That the teacher agrees with the
labels is the test of it. An epoch is a view.

Shapes: B samples of a batch, N of the data set, C classes, K kept ones.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError
from cache_tools.importers import base, fkd, torch_file
from cache_tools.importers.base import ArrayAllocator, RecordBlock, SourceInfo
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.views import ViewSpec
from cache_tools.targets import dense
from cache_tools.targets.statistics import check_agreement
from cache_tools.views.draw import LAMBDA_SCALE
from cache_tools.views.imported import ImportedViews

SEED = 42
"""The default of their command."""
_KEPT = 64
_NOTE = (  # part of the spec: another text is another fingerprint
    "Boxes, flips and mixing are SRe2L's, resized as by its loader: bilinear, by Pillow. Of the "
    "teacher's classes the 64 most probable are taken."
)
Batch = tuple[Any, ...]


class Sre2lFiles:
    """The files of one folder of soft labels by batch."""

    def __init__(
        self,
        root: Path,
        images: ImageDataset,
        counted: Sequence[str],
        num_classes: int,
        size: int,
        seed: int = SEED,
    ) -> None:
        """Find the epochs and read the first batch.

        Images are in the order of a sample table, the names `counted` in that of ImageFolder;
        `seed` drew the order of the batches.

        Raises:
            DataError: Files are missing, or hold something else.
        """
        self._root, self._num_classes, self._label_N = root, num_classes, images.label_N
        self._seed = seed
        row = {name: i for i, name in enumerate(images.names)}
        self._row_N = np.array([row[name] for name in counted], dtype=np.int64)
        views = 0
        while (root / f"epoch_{views}").is_dir():
            views += 1
        first = self._batch(self._path(0, 0))
        self._batch_size, mixed = len(first[0]), float(first[2] is not None)
        self._orders = _orders(len(counted), seed)
        self._drawn: list[NDArray[np.int64]] = []
        spec = ViewSpec(size, hflip=0.0, interpolation="bilinear", mixup=mixed, cutmix=mixed)
        top_k = min(_KEPT, num_classes)
        self.info = SourceInfo(views, top_k, ImportedSpec("SRe2L", _NOTE), spec, by_view=True)

    def read(
        self, rows: range, view_numbers: Sequence[int], table: SampleTable, arrays: ArrayAllocator
    ) -> Iterator[RecordBlock]:
        """Yield records; see `RecordSource`."""
        for view in view_numbers:
            yield self._records(view, rows, table, arrays)

    def _records(
        self, view: int, rows: range, table: SampleTable, arrays: ArrayAllocator
    ) -> RecordBlock:
        index = np.zeros((len(rows), self.info.top_k), np.int64)
        p = np.zeros(index.shape, np.float32)
        columns = {name: c[0] for name, c in arrays.blank(1, len(rows)).items()}
        row_N = self._row_N[self._order(view)]
        agrees = seen = 0
        for number, begin in enumerate(range(0, len(row_N), self._batch_size)):
            row_B = row_N[begin : begin + self._batch_size]
            here = np.flatnonzero((row_B >= rows.start) & (row_B < rows.stop))
            if not len(here):
                continue
            path = self._path(view, number)
            coords, flip, partner, lam, box, logits = self._batch(path, len(row_B))
            sides = table.height_N[row_B].astype(float), table.width_N[row_B].astype(float)
            names = [f"{path}, place {place}" for place in range(len(row_B))]
            box_B4 = fkd.boxes(coords.astype(np.float64), *sides, False, names)
            own = np.arange(len(row_B)) if partner is None else partner
            at, other = row_B[here] - rows.start, own[here]
            places = [here, other][: columns["box_BP4"].shape[1]]
            for side, place in enumerate(places):
                columns["box_BP4"][at, side] = box_B4[place]
                columns["flip_BP"][at, side] = flip[place]
            columns["partner_B"][at] = row_B[other]
            if box is not None:
                columns["cut_B4"][at] = box
            elif partner is not None:
                columns["weight_B"][at] = round(lam * LAMBDA_SCALE)
            p_BC = dense.softmax(logits[here])
            index[at] = np.argpartition(-p_BC, self.info.top_k - 1, axis=1)[:, : self.info.top_k]
            p[at] = np.take_along_axis(p_BC, index[at], axis=1)
            top_B, label_B = p_BC.argmax(axis=1), self._label_N[row_B]
            agrees += int(((top_B == label_B[here]) | (top_B == label_B[other])).sum())
            seen += len(here) * int(label_B.min() >= 0)
        cause = (
            f"These files are of other images, or were made with another --fkd-seed than "
            f"{self._seed} (pass theirs), or by several processes."
        )
        where = f"{self._root}/epoch_{view}"
        check_agreement(agrees, seen, 2.0 / self._num_classes, where, cause)
        base.refuse_records(index, p, self._num_classes, [str(self._root)] * len(rows))
        return RecordBlock(index, p, ImportedViews(**columns))

    def _path(self, view: int, batch: int) -> Path:
        return self._root / f"epoch_{view}" / f"batch_{batch}.tar"

    def _order(self, view: int) -> NDArray[np.int64]:
        """Numbers of the images in the order of an epoch."""
        while len(self._drawn) <= view:
            self._drawn.append(next(self._orders))
            next(self._orders)
        return self._drawn[view]

    def _batch(self, path: Path, count: int = 0) -> Batch:
        """Read a file: coordinates, flips, partners, share, box and logits, of `count` images."""
        value = torch_file.load(path, tensors=True)
        try:
            coords, flip, index, lam, bbox, logits = value
            shape = count or len(coords), self._num_classes
            arrays = (coords, (shape[0], 4)), (flip, shape[:1]), (logits, shape)
            if any(array.shape != expected for array, expected in arrays):
                raise ValueError(f"logits {logits.shape}, not {shape}")
            if index is not None and not np.array_equal(np.sort(index), np.arange(shape[0])):
                raise ValueError("partners that are no permutation of the batch")
            if not np.isfinite(logits).all() or dense.are_probabilities(logits).all():
                raise ValueError("numbers that are no logits")
            lam = 1.0 if lam is None else float(lam)
            if not 0 <= lam <= 1:
                raise ValueError(f"mixup by {lam}")
            top, left, bottom, right = (0, 0, 0, 0) if bbox is None else map(int, bbox)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no batch of SRe2L: {str(error)[:200]}.") from None
        cut = [top, left, bottom - top, right - left] if bottom > top and right > left else [0] * 4
        box = None if bbox is None else cut
        return coords, flip, index, lam, box, logits


def is_one(root: Path) -> bool:
    """Check if a folder has soft labels by batch."""
    return (root / "epoch_0" / "batch_0.tar").is_file()


def _orders(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draw permutations as torch.randperm does from a generator on the CPU with this seed."""
    generator = np.random.RandomState(seed)  # of torch, not of the format
    while True:
        order = list(range(count))
        words = generator.randint(0, 2**32, max(count - 1, 0), dtype=np.uint32).tolist()
        for i, word in enumerate(words):
            at = i + word % (count - i)
            order[i], order[at] = order[at], order[i]
        yield np.array(order, dtype=np.int64)
