"""Import of soft labels that another system stored: the steps that all formats share.

A `RecordSource` reads one format: it matches samples to files and returns the records of some
samples and views. Here the samples become a table, boxes are checked against image sizes and
classes against labels, and parts are encoded, probed and committed one by one, so that a killed
import resumes.

Shapes: B samples, K classes of a record.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import match, scan
from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError, UsageError
from cache_tools.render import view
from cache_tools.runtime import progress, threads
from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.dataset import NO_LABEL, DatasetSpec, KeyKind
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import UNKNOWN_VIEWS, ViewSpec
from cache_tools.storage import atomic
from cache_tools.storage.open import open_storage
from cache_tools.store import resume
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.store.manifest import MAX_VIEWS
from cache_tools.targets import codec
from cache_tools.targets.codec import SparseTargets
from cache_tools.targets.keep import of_all_classes
from cache_tools.targets.statistics import check_agreement, most_probable, part_statistics
from cache_tools.verify import probes
from cache_tools.version import __version__
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews

log = logging.getLogger("kdcache")
BLOCK = 65_536
_MEMORY = 2**28
"""Bytes of a block's records from which they go to a temporary file instead of memory."""
_WINDOW = 1024
_OTHER_IMAGES = (
    "Its records are of other images or in another order (--dataset-index), or its classes are not "
    "those of the labels (--no-labels)."
)


@dataclass(frozen=True)
class RecordBlock:
    """Records of one view of B samples."""

    index_BK: NDArray[np.int64]
    """Class ids."""
    probability_BK: NDArray[np.float32]
    """Their probabilities, in any order."""
    params: ImportedViews
    """View parameters: boxes, flips, operations."""


@dataclass(frozen=True)
class SourceInfo:
    """Shape of a source, known from its first file."""

    num_views: int
    top_k: int
    """Classes of a record, K."""
    imported: ImportedSpec | None
    views: ViewSpec | None
    """Size, resampling and mixing; None when the views cannot be replayed."""
    by_view: bool = False
    """True if a file holds one view of many samples; else it holds all views of one sample."""


class RecordSource(Protocol):
    """An opened folder of one format."""

    @property
    def info(self) -> SourceInfo:
        """Shape of the source."""

    def read(
        self, rows: range, view_numbers: Sequence[int], table: SampleTable, arrays: "ArrayAllocator"
    ) -> Iterator[RecordBlock]:
        """Yield the records of some views of the samples in `rows`, in the order of the table.

        Raises:
            DataError: A file violates its format; names file, sample and reason.
        """


class ArrayAllocator:
    """Arrays for the records of a block, in memory or, if large, in a file beside the cache.

    Files hold all views of a sample, parts one view of all samples: a block is transposed here, so
    that each file is read once.
    """

    def __init__(self, spec: CacheSpec, beside: Path) -> None:
        self.spec = spec
        self._beside = beside

    def zeros(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Allocate zeros, which the system frees after their last use."""
        if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize < _MEMORY:
            return np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._beside) as file:
                return np.memmap(file, dtype, "w+", shape=shape)
        except OSError as error:
            raise atomic.cannot_write(self._beside, error) from None

    def blank(self, views: int, samples: int) -> dict[str, NDArray[Any]]:
        """Allocate every column of `ImportedViews`, [views, samples, …], unmixed and plain."""
        found = {}
        for c in imported.columns(self.spec):
            found[c.attribute] = self.zeros((views, samples, *c.shape), c.dtype)
            if c.default:
                found[c.attribute][:] = c.default
        return found


@dataclass(frozen=True)
class ImportOptions:
    """Options of `kdcache import`."""

    num_classes: int = 0
    """Number of the teacher's classes; 0: that of the data set."""
    labels: bool = True
    """True if the labels of the data set are classes of the teacher."""
    keep: str = ""
    """Classes to keep, as `--keep`; "": all of a record."""
    teacher: str = "unknown"
    """Name of the teacher."""


def classes_of(images: ImageDataset, options: ImportOptions) -> int:
    """Return the number of the teacher's classes.

    Raises:
        UsageError: Neither the options nor the data set contain it.
    """
    if count := options.num_classes or images.num_classes * options.labels:
        return count
    raise UsageError("the number of the teacher's classes is unknown. Pass --classes N.")


def run(source: RecordSource, images: ImageDataset, options: ImportOptions, out: Path) -> Cache:
    """Write the cache, or resume writing it; `images` are in the order of a sample table.

    Raises:
        DataError, UsageError: The source, data set or cache does not fit; committed parts stay.
    """
    kept, classes = source.info.top_k, classes_of(images, options)
    if kept > classes:
        raise DataError(
            f"a record has {kept} classes, the teacher {classes}. Pass --classes N if it has more."
        )
    if source.info.num_views > MAX_VIEWS:
        raise DataError(f"{source.info.num_views} views are too many; a cache has {MAX_VIEWS}.")
    store, images = _open(source.info, images, options, out)
    todo = [part for part in store.parts() if store.check_part(part) is not None]
    total, left = (sum(len(store.spec.rows(p.block)) for p in ps) for ps in (store.parts(), todo))
    with progress.bar("import", total, "views", total - left) as advance:
        for group in _groups(todo, source.info.by_view):
            rows = store.spec.rows(group[0].block)
            arrays = ArrayAllocator(store.spec, out.absolute().parent)
            blocks = source.read(rows, [part.view for part in group], store.table, arrays)
            for part, records in zip(group, blocks, strict=True):
                _commit(store, images, part, records)
                advance(len(rows))
    return store


def refuse_records(
    index_BK: NDArray[np.int64],
    probability_BK: NDArray[np.floating],
    num_classes: int,
    names: Sequence[str],
) -> None:
    """Raise DataError if records are no distributions over the classes; names the first."""
    ascending = np.sort(index_BK, axis=1)
    p = probability_BK.astype(np.float64)
    with np.errstate(invalid="ignore"):
        faults = {
            f"has a class outside of 0..{num_classes - 1}": (
                (ascending[:, 0] < 0) | (ascending[:, -1] >= num_classes)
            ),
            "names a class twice": (ascending[:, 1:] == ascending[:, :-1]).any(axis=1),
            "has an invalid probability": ~((p >= 0) & (p <= 1.001)).all(axis=1),
            "has probabilities that add up to more than 1": p.sum(axis=1) > 1.01,
            "has no probability above 0": ~(p.max(axis=1) > 0),
        }
    for fault, wrong_B in faults.items():
        if wrong_B.any():
            at = int(np.flatnonzero(wrong_B)[0])
            raise DataError(
                f"{names[at]} {fault} (classes {index_BK[at].tolist()[:8]}, probabilities "
                f"{p[at].tolist()[:8]}): it is damaged, or of another format."
            )


def _open(
    info: SourceInfo, images: ImageDataset, options: ImportOptions, out: Path
) -> tuple[Cache, ImageDataset]:
    storage = open_storage(out)
    atomic.sweep(out)
    if (stated := resume.root(storage)) is not None:
        try:
            return _continue(Cache(storage, stated), info, images, options)
        except UsageError:
            if not resume.discard_empty(storage):
                raise
    kind, keys, images = scan.in_table_order(images, None)
    table = _table(keys, images, options.labels, scanned=info.views is not None)
    spec = _spec(info, table, kind, images, options)
    store = resume.create(out, spec, table, info.num_views)
    store.set_data_path(images.source)
    return store, images


def _continue(
    store: Cache, info: SourceInfo, images: ImageDataset, options: ImportOptions
) -> tuple[Cache, ImageDataset]:
    """Continue the cache of an import; UsageError when it is another."""
    kind, keys, ordered = scan.in_table_order(images, store.spec.dataset.key)
    scanned = info.views is not None
    store.mend(lambda: _table(keys, ordered, options.labels, scanned))
    if tuple(keys) != store.table.keys:
        raise UsageError(
            f"{store.name} is another cache: its samples are not those of {images.source}. Choose "
            "another --out, or pass the --data of its first import."
        )
    images = match.match(store.table, store.spec.dataset, images) if scanned else images
    ours = _spec(info, store.table, kind, images, options)
    if found := difference(store.spec.mapping, ours.continuing(store.spec).mapping):
        raise UsageError(f"{store.name} is another cache: {found} now. Choose another --out.")
    store.resize(info.num_views)
    return store, images


def _table(keys: Sequence[str], images: ImageDataset, labels: bool, scanned: bool) -> SampleTable:
    """Build the sample table; image sizes and digests are read only if views can be replayed."""
    if scanned:
        with progress.bar("look at images", len(keys), "images") as advance:
            return scan.scan(keys, images, labels, threads.cpu_count(), advance)
    label_N = images.label_N if labels else np.full(len(keys), NO_LABEL, dtype=np.int32)
    return sample_table.of_keys(keys, label_N)


def _spec(
    info: SourceInfo,
    table: SampleTable,
    kind: KeyKind,
    images: ImageDataset,
    options: ImportOptions,
) -> CacheSpec:
    classes = classes_of(images, options)
    labelled = options.labels and NO_LABEL not in table.label_N
    if labelled and int(table.label_N.max()) >= classes:
        raise UsageError(
            f"the labels of {images.source} go up to {int(table.label_N.max())}, the teacher has "
            f"{classes} classes. Pass --no-labels if they are not its classes."
        )
    names = scan.classes_sha256(images) if labelled else ""
    counted = max(images.num_classes, 0) if labelled else 0
    dataset = DatasetSpec(len(table), counted, labelled, kind, table.sha256, names)
    targets = _targets(options.keep, min(info.top_k, classes))
    try:
        return CacheSpec(
            dataset,
            TeacherSpec(options.teacher, "", "", classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            info.views or UNKNOWN_VIEWS,
            targets,
            min(_block(targets.k_max), len(table)),
            renderer="kernels-2" if info.views else "none",
            imported=info.imported,
        )
    except ValueError as error:
        raise UsageError(f"these records do not fit a cache: {error}") from None


def _block(kept: int) -> int:
    """Return the rows of a part: fewer if many classes are kept, to bound memory."""
    block = BLOCK
    while block > _WINDOW and 4 * block * kept > _MEMORY:
        block //= 2
    return block


def _targets(keep: str, kept: int) -> TargetSpec:
    """Return the target spec for records of `kept` classes, which have no masses at T ≠ 1."""
    if not keep:
        return TargetSpec(k_max=kept, k_min=kept, tau=0.0, temperatures=(1.0,))
    wanted = of_all_classes(keep, temperatures=False)
    k_max, k_min = min(wanted.k_max, kept), min(wanted.k_min, kept)
    return replace(wanted, k_max=k_max, k_min=k_min, temperatures=(1.0,))


def _groups(todo: list[Part], by_view: bool) -> list[list[Part]]:
    """Group the parts to read together: those of a block, or each alone, view by view."""
    if by_view:
        return [[part] for part in todo]
    by_block = sorted(todo, key=lambda part: (part.block, part.view))
    return [list(parts) for _, parts in groupby(by_block, key=lambda part: part.block)]


def _commit(store: Cache, images: ImageDataset, part: Part, records: RecordBlock) -> None:
    spec, rows = store.spec, store.spec.rows(part.block)
    label_B = store.table.label_N[rows.start : rows.stop]
    sparse = _sparse(records, spec.targets)
    stored = codec.encode(sparse, spec.targets, spec.teacher.num_classes)
    top_B, top_sum = most_probable(records.index_BK, records.probability_BK)
    correct = None
    if spec.dataset.labels and not spec.views.mixes:
        correct = float((top_B == label_B).sum())
        chance = 1.0 / spec.teacher.num_classes
        check_agreement(correct, len(label_B), chance, str(part), _OTHER_IMAGES)
    if spec.imported and (wrong := imported.check(records.params, spec, store.table, rows)):
        raise DataError(f"{part} has {wrong}. These files are of other images than --data has.")
    probes = _probes(store, images, part, records.params)
    statistics = part_statistics(stored, top_sum, correct)
    versions = {**view.versions(), "import": f"kdcache {__version__}"}
    params = records.params if spec.imported else None
    store.write(part, stored, probes, statistics, versions, params)


def _sparse(records: RecordBlock, targets: TargetSpec) -> SparseTargets:
    """Select the kept classes; the remaining mass, at least 0 despite rounding, is the tail."""
    p_BK = records.probability_BK.astype(np.float64)
    order_BK = np.argsort(-p_BK, axis=1, kind="stable")
    rank_BK = np.argsort(order_BK, axis=1, kind="stable")
    kept_BK = ((rank_BK < targets.k_max) & (p_BK > targets.tau)) | (rank_BK < targets.k_min)
    p_BK = np.where(kept_BK, p_BK, 0.0)
    tail_B1 = np.maximum(1.0 - p_BK.sum(axis=1, keepdims=True), 0.0)
    none = np.zeros((len(p_BK), 0))
    return SparseTargets(np.where(kept_BK, records.index_BK, -1), p_BK, tail_B1, none, none)


def _probes(
    store: Cache, images: ImageDataset, part: Part, params: ImportedViews
) -> NDArray[np.uint64]:
    """Compute the fingerprints of the probe views' pixels, as stage 1 stores them."""
    if not store.spec.replayable:
        return np.empty(0, dtype=np.uint64)
    rows, own = store.spec.rows(part.block), params.side(0, store.spec)

    def one(number: int) -> int:
        return probes.fingerprint(store, images, number, own, number - rows.start)

    with ThreadPoolExecutor(threads.cpu_count()) as pool:
        return np.array(list(pool.map(one, probe_numbers(rows))), dtype=np.uint64)
