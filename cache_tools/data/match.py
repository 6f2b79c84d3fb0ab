"""Match a copy of the data set to a cache's samples: by key, then by digest.

Other shards, another order, an ImageFolder: keys match, and cost no read. Where samples are
missing and the copy has images of other names, their bytes are compared: a renamed image has the
digest that the sample table has. Only images whose encoded size is that of a missing sample are
read, and a few of them first, since a copy of which none fits is another data set. Digests are kept
in the data folder.

Shapes: N samples of the table, M images of the copy.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import scan, sources
from cache_tools.data.images import ImageDataset, with_classes
from cache_tools.data.open import find_tars, has_split, open_images
from cache_tools.errors import CacheMismatch, KdcacheError, UsageError
from cache_tools.numerics import text_column
from cache_tools.numerics.array_types import I8, U8
from cache_tools.numerics.text_column import TextColumn
from cache_tools.runtime import progress, threads
from cache_tools.runtime.text import counted
from cache_tools.spec import class_names, sample_table
from cache_tools.spec.canonical import canonical_json
from cache_tools.spec.dataset import DatasetSpec, SplitName
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import disk_cache, mapped
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.mapped import Arrays

log = logging.getLogger("kdcache")
_FIRST = 256
"""Images that are read before all that may be renamed are."""
_AHEAD = 1024
_INDEX = ("file_N", "offset_N", "length_N", "label_N")
"""Columns of an index of tars that are kept, beside the names."""
_UNITS = {
    "bytes": " bytes",
    "height": " rows of pixels",
    "width": " columns of pixels",
    "digest": " as digest",
}
_COVERAGE = ("by_digest", "extra", "first_missing", "first_extra")


@dataclass(frozen=True)
class DatasetMatch:
    """A cache's samples in a data set."""

    image_index_N: I8
    """Number of the image in the data set; -1 where there is none."""
    by_digest: int
    """Samples found by their bytes, under other keys."""
    extra: int
    """Images that are no sample of the cache."""
    first_missing: str
    """Key of the first sample that is not there, or ""."""
    first_extra: str
    """Key of the first image that is no sample, or ""."""
    split: SplitName = "train"
    """Split of the data set that was opened."""

    @property
    def present_N(self) -> NDArray[np.bool_]:
        """[N] True for samples that were found."""
        return np.asarray(self.image_index_N >= 0)

    @property
    def found(self) -> int:
        """Number of samples found."""
        return int(self.present_N.sum())

    @property
    def missing(self) -> int:
        """Number of samples not found."""
        return len(self.image_index_N) - self.found

    @property
    def by_name(self) -> bool:
        """True if all were found by their keys and there are no other images."""
        return not (self.by_digest or self.missing or self.extra)

    @property
    def facts(self) -> dict[str, Any]:
        """The counts, for `--json` and result.json."""
        return {
            "samples": len(self.image_index_N),
            "by_key": self.found - self.by_digest,
            "by_digest": self.by_digest,
            "missing": self.missing,
            "extra": self.extra,
        }

    def __str__(self) -> str:
        count = len(self.image_index_N)
        verb = "is" if count == 1 else "are"
        words = f"{self.found:,} of {counted(count, 'sample')} {verb} there"
        words += f", {self.by_digest:,} of them under other names" * bool(self.by_digest)
        words += f"; first missing: {self.first_missing!r}" * bool(self.missing)
        return words + f"; {counted(self.extra, 'other image')}" * bool(self.extra)


def find(table: SampleTable, dataset: DatasetSpec, images: ImageDataset) -> DatasetMatch:
    """Look for the samples of `table` among `images`."""
    images = _in_classes_of(dataset, images)
    _, keys = images.keys(dataset.key)
    id_M = sample_table.sample_ids(keys)
    order = np.argsort(id_M, kind="stable")
    if np.array_equal(id_M[order], table.id_N):
        return DatasetMatch(order, 0, 0, "", "")
    _, first, count = np.unique(id_M, return_index=True, return_counts=True)
    alone = first[count == 1]  # images that share a name are distinguished by their bytes
    row = np.searchsorted(table.id_N, id_M[alone]).clip(max=len(table) - 1)
    hit = table.id_N[row] == id_M[alone]
    image_index_N = np.full(len(table), -1, dtype=np.int64)
    image_index_N[row[hit]] = alone[hit]
    strange = np.setdiff1d(np.arange(len(keys)), alone[hit])
    renamed = _renamed(table, np.flatnonzero(image_index_N < 0), images, strange)
    image_index_N[list(renamed)] = list(renamed.values())
    extra = np.setdiff1d(strange, list(renamed.values()))
    return DatasetMatch(
        image_index_N,
        len(renamed),
        len(extra),
        min((table.keys[i] for i in np.flatnonzero(image_index_N < 0).tolist()), default=""),
        min((keys[i] for i in extra.tolist()), default=""),
    )


def align(
    table: SampleTable,
    dataset: DatasetSpec,
    images: ImageDataset,
    partial: bool = False,
    covered: DatasetMatch | None = None,
) -> tuple[ImageDataset, DatasetMatch]:
    """Order a data set as `table`, after checking that it is the one the cache was made from.

    Keys, labels, encoded sizes and what else a data set has recorded of its images are compared
    here, which costs no read where no image was renamed; the bytes themselves are compared with
    their digests when they are read.

    Args:
        table: The cache's samples.
        dataset: The cache's description of its data set.
        images: A copy of the data set.
        partial: True if samples may be missing and other images be there. A missing sample is
            replaced by some other image, which must not be shown.
        covered: Result of `find`, where it was called before.

    Raises:
        CacheMismatch: Samples are missing or too many, or a label or the size of an image differs.
    """
    images = _in_classes_of(dataset, images)
    covered = covered or find(table, dataset, images)
    if not covered.found or (not partial and (covered.missing or covered.extra)):
        raise _mismatch(covered, images, partial)
    if not covered.by_name:
        log.info("%s: %s", images.source, covered)
    rows = np.flatnonzero(covered.present_N)
    ordered = images.subset(
        np.where(covered.present_N, covered.image_index_N, covered.image_index_N[rows[0]])
    )
    _check_recorded(table, rows, ordered)
    if dataset.labels:
        _check_labels(table, dataset, rows, ordered)
    return ordered, covered


def open_aligned(
    table: SampleTable, dataset: DatasetSpec, source: str, partial: bool = False
) -> tuple[ImageDataset, DatasetMatch]:
    """Open a data set in the order of `table`: `open_images`, then `align`.

    Its training split; or another one that is the cache's (`dataset.split` of stage 1), where
    `partial` the one with most of its samples. Of a large data set of tars on this machine the
    result is kept in the data folder, and mapped from there by all processes until a tar, the table
    or the description changes.

    Raises:
        As `open_images` and `align`.
    """
    return _of_best_split(
        source, lambda split: _open_aligned(table, dataset, source, split, partial)
    )


def open_unordered(table: SampleTable, dataset: DatasetSpec, source: str) -> ImageDataset:
    """Open the split with most samples of `table`, in its own order; else the training split.

    Of several splits that have all of them it is the one with the fewest other images.
    """
    kept: dict[SplitName, ImageDataset] = {}

    def opened(split: SplitName) -> tuple[ImageDataset, DatasetMatch]:
        kept[split] = open_images(source, split)
        return kept[split], align(table, dataset, kept[split], partial=True)[1]

    try:
        return _of_best_split(source, opened)[0]
    except CacheMismatch:
        return kept.get("train") or open_images(source, "train")


def _of_best_split(
    source: str, opened: Callable[[SplitName], tuple[ImageDataset, DatasetMatch]]
) -> tuple[ImageDataset, DatasetMatch]:
    """Return what `opened` makes of the split with most of a cache's samples, and fewest others.

    Errors of other splits than the training split are of the data set only where it has no other.
    """
    found: list[tuple[ImageDataset, DatasetMatch]] = []
    refused: dict[SplitName, KdcacheError] = {}
    for split in get_args(SplitName):
        try:
            if split != "train" and not has_split(source, split):
                continue
            images, covered = opened(split)
        except KdcacheError as error:
            if split == "train" and not isinstance(error, (CacheMismatch, UsageError)):
                raise
            refused[split] = error
        else:
            found.append((images, replace(covered, split=split)))
            if not (covered.missing or covered.extra):
                break
    if found:
        best = min(found, key=lambda each: (each[1].missing, each[1].extra))
        if best[1].split != "train":
            log.info("%s: the cache is of its %s split", source, best[1].split)
        return best
    for split, reason in refused.items():
        if not isinstance(reason, (CacheMismatch, UsageError)):
            log.warning("%s: its %s split cannot be opened: %s", source, split, reason)
    errors = list(refused.values())
    raise next((each for each in errors if isinstance(each, CacheMismatch)), errors[0])


def _open_aligned(
    table: SampleTable, dataset: DatasetSpec, source: str, split: SplitName, partial: bool
) -> tuple[ImageDataset, DatasetMatch]:
    """Open a split in the order of `table`, or map it."""
    found = find_tars(source, split) if len(table) >= mapped.WORTH else None
    if found is None:
        return align(table, dataset, open_images(source, split), partial)
    paths, state = found
    identity = canonical_json({"dataset": asdict(dataset), "partial": partial}).decode()

    def make() -> Arrays:
        images, covered = align(table, dataset, open_images(source, split), partial)
        names = text_column.of(images.names).compact()
        arrays = {column: getattr(images, column) for column in _INDEX}
        arrays |= {"name": names.bytes_L, "begin": names.begin_N, "end": names.end_N}
        facts = {name: getattr(covered, name) for name in _COVERAGE}
        return Arrays(
            arrays | {"image_index": covered.image_index_N},
            {"coverage": facts, "classes": images.class_names},
        )

    kept = mapped.load(disk_cache.table_key("aligned data set 1", state, identity), make)
    arrays = kept.arrays
    covered = DatasetMatch(arrays["image_index"], **kept.facts["coverage"])
    if not covered.by_name:
        log.info("%s: %s", source, covered)
    names = TextColumn(*(arrays[part] for part in ("name", "begin", "end")))
    columns: dict[str, Any] = {column: arrays[column] for column in _INDEX}
    classes = tuple(kept.facts["classes"])
    return ImageDataset(source, paths, names, class_names=classes, **columns), covered


def match(table: SampleTable, dataset: DatasetSpec, images: ImageDataset) -> ImageDataset:
    """Order a data set as `table`; raises as `align`."""
    return align(table, dataset, images)[0]


def _in_classes_of(dataset: DatasetSpec, images: ImageDataset) -> ImageDataset:
    """Renumber class folders that are some of the synsets of a cache as the cache has them."""
    digest = dataset.classes_sha256
    known = class_names.synsets_of(digest) if digest else ()
    return with_classes(images, known) if {*images.class_names} <= {*known} else images


def _renamed(table: SampleTable, missing: I8, images: ImageDataset, strange: I8) -> dict[int, int]:
    """Find missing rows by their bytes, and their label if there is one: row → image."""
    strange = strange[np.isin(images.length_N[strange], table.bytes_N[missing])]
    if not len(strange) or not len(missing):
        return {}
    digest_M = _digests(images, strange, table.digest_N[missing])
    rows_of: dict[int, list[int]] = {}
    for row in missing.tolist():
        rows_of.setdefault(int(table.digest_N[row]), []).append(row)
    found = {}
    for number, digest in zip(strange.tolist(), digest_M.tolist(), strict=True):
        rows = rows_of.get(digest, [])
        alike = [r for r in rows if table.label_N[r] == images.label_N[number]] or rows
        if alike:  # an image that is there twice has two rows, which may differ in their labels
            rows.remove(alike[0])
            found[alike[0]] = number
    return found


def _digests(images: ImageDataset, numbers: I8, wanted: U8) -> U8:
    """Compute digests of some images; all 0 if none of a first few matches."""
    kept, name = DiskCache(), disk_cache.key("digests", _copy(images, numbers))
    if (data := kept.index(name)) is not None and len(data) == 8 * len(numbers):
        return np.frombuffer(data, dtype="<u8").astype(np.uint64)
    tried = numbers[:: max(1, len(numbers) // _FIRST)]
    log.info("%s: other names; images are looked for by their bytes", images.source)
    if not np.isin(_read(images, tried), wanted).any():
        return np.zeros(len(numbers), dtype=np.uint64)
    found = _read(images, numbers)
    kept.store_index(name, found.astype("<u8").tobytes())
    return found


def _read(images: ImageDataset, numbers: I8) -> U8:
    """Compute digests of the bytes of images."""
    digests: list[int] = []
    with (
        progress.bar("compare images", len(numbers), "images") as advance,
        ThreadPoolExecutor(threads.cpu_count()) as pool,
    ):
        for begin in range(0, len(numbers), _AHEAD):
            few = numbers[begin : begin + _AHEAD].tolist()
            digests.extend(pool.map(lambda number: sample_table.digest(images.read(number)), few))
            advance(len(few))
    return np.array(digests, dtype=np.uint64)


def _copy(images: ImageDataset, numbers: I8) -> str:
    """Compute an identity of some images of a copy without reading them."""
    identity = hashlib.sha256(sources.resolve(images.source).encode())
    for path in images.paths:
        with contextlib.suppress(OSError):
            identity.update(disk_cache.file_key(path).encode())
    names = "\n".join(images.names[i] for i in numbers.tolist())
    identity.update(names.encode("utf-8", "surrogateescape"))
    for column in (images.length_N, images.offset_N):
        identity.update(column[numbers].astype("<i8").tobytes())
    return identity.hexdigest()


def _check_recorded(table: SampleTable, rows: I8, images: ImageDataset) -> None:
    """Compare what the data set has recorded of its images with the table.

    Of pixels in a `.beton` the recorded digest is that of the encoded image they were made from.
    """
    for name, found_N in images.recorded().items():
        count, first = _changed(table, rows, found_N, getattr(table, f"{name}_N"), _UNITS[name])
        if count:
            raise CacheMismatch(
                f"{count} of {len(table)} images in {images.source} are not the teacher's "
                f"(first: {first}). "
                "Pass the original images; a re-encoded copy gives other pixels."
            )


def _check_labels(table: SampleTable, dataset: DatasetSpec, rows: I8, images: ImageDataset) -> None:
    named = dataset.classes_sha256 and images.class_names
    if named and scan.classes_sha256(images) != dataset.classes_sha256:
        raise CacheMismatch(
            f"the {len(images.class_names)} class folders of {images.source}, or their order, are "
            "not those of the cache: labels would mean other classes. Pass the original folder. "
            "Drafts of kdcache did not number classes as timm does: if they made this "
            "cache, and names have capitals or numbers of unequal length, make it again."
        )
    count, first = _changed(table, rows, images.label_N, table.label_N)
    if count:
        raise CacheMismatch(
            f"{count} of {len(table)} labels in {images.source} differ from those in the cache "
            f"(first: {first}). "
            "Pass the original data set."
        )


def _changed(
    table: SampleTable, rows: I8, found_N: NDArray[Any], expected_N: NDArray[Any], unit: str = ""
) -> tuple[int, str]:
    """Count the rows of other values, and describe the first of them."""
    changed = rows[found_N[rows] != expected_N[rows]]
    if not len(changed):
        return 0, ""
    first = int(changed[0])
    values = f"{found_N[first]}{unit} against {expected_N[first]}"
    return len(changed), f"{table.keys[first]!r}, {values}"


def _mismatch(covered: DatasetMatch, images: ImageDataset, partial: bool) -> CacheMismatch:
    first = f"first unknown key: {covered.first_extra}"
    if covered.missing:
        first = f"first missing key: {covered.first_missing}"
    ways = ["pass the data set the cache was made from", "make a cache of this one"]
    if not partial and covered.found > 0:
        ways.append("train on the shared ones (--allow-partial, in Python allow_partial=True)")
    now = f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return CacheMismatch(
        f"this cache was made from {len(covered.image_index_N):,} samples, the data set at "
        f"{images.source} has {covered.found + covered.extra:,}, of which {covered.found:,} are "
        f"shared ({first}). {now[0].upper()}{now[1:]}."
    )
