"""`kdcache cache` from end to end: open the data, know the teacher, make what is missing.

Resuming is running the same command again. What is committed is checked by its digests first; what
is damaged is made anew. A cache of other data, another teacher or other views at the same path is
refused, naming the field.
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cache_tools import files, progress, samples, shards, threads
from cache_tools import verify as verifier
from cache_tools.commits import Part
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.shards import NO_LABEL, Images
from cache_tools.spec import CacheSpec, DatasetSpec, TargetSpec, difference
from cache_tools.store import Store
from pipeline import teacher as teachers
from pipeline.forward import Forward, choose_device
from pipeline.part import Worker
from pipeline.recipe import CacheRecipe
from pipeline.teacher import Teacher

log = logging.getLogger("kdcache")
CPU_BATCH = 32


@dataclass(frozen=True)
class Share:
    """Which of the missing parts this process makes."""

    worker: int = 0
    """Number of this worker, from 0."""
    workers: int = 1
    """How many there are."""
    limit: int | None = None
    """Stop after this many parts."""
    numbers: frozenset[int] = frozenset()
    """Only these parts, in the order of `Store.parts`; empty = all."""

    def has(self, number: int) -> bool:
        """Whether a part is of this share."""
        if self.numbers:
            return number in self.numbers
        return number % self.workers == self.worker


def run(
    recipe: CacheRecipe,
    data: str,
    teacher_name: str,
    out: Path,
    device: str | None = None,
    random_weights: bool = False,
    share: Share = Share(),
) -> Store:
    """Make a cache, or what is missing of it.

    Raises:
        KdcacheError: Any of its kinds; what is committed stays.
    """
    where = choose_device(device)
    if where.type == "cpu":
        count, why = threads.for_torch(recipe.views.for_teacher().size)
        torch.set_num_threads(count)
        log.info("%s", why)
    images = shards.open_images(data, recipe.dataset.split)
    seen = recipe.views.for_teacher().size
    teacher = teachers.load(teacher_name, seen, recipe.precision, random_weights)
    store, images = _open_or_create(recipe, images, teacher, out)
    store.note_source(str(Path(data).resolve()))
    _make_missing(store, images, Forward(teacher, store.spec.targets, where), recipe, share)
    return store


def _open_or_create(
    recipe: CacheRecipe, images: Images, teacher: Teacher, out: Path
) -> tuple[Store, Images]:
    labels, num_classes = _labels(recipe, images, teacher)
    if (out / "zarr.json").is_file():
        store = Store.open(out)
        images = samples.match(store.table, store.spec.dataset, images)
        dataset = replace(store.spec.dataset, labels=labels, num_classes=num_classes)
        _refuse_other(store, _spec(recipe, dataset, teacher))
        if swept := files.sweep(out):
            log.info("removed %d temporary files that killed processes left", swept)
        store.grow(recipe.num_views)
        return store, images
    kind, keys, images = samples.in_table_order(images, None)
    with progress.bar("read images", len(keys), "images") as advance:
        table = samples.scan(keys, images, labels, threads.available(), advance)
    classes = samples.classes_sha256(images) if labels else ""
    dataset = DatasetSpec(len(table), num_classes, labels, kind, table.sha256, classes)
    spec = _spec(recipe, dataset, teacher)
    return Store.create(out, spec, table, recipe.num_views), images


def _labels(recipe: CacheRecipe, images: Images, teacher: Teacher) -> tuple[bool, int]:
    """Whether labels are kept and of how many classes; refuses labels of other classes."""
    if recipe.dataset.labels == "ignore":
        return False, 0
    classes = recipe.dataset.num_classes or images.num_classes
    if NO_LABEL in images.label_N:
        raise UsageError(
            f"not every image of {images.source} has a label. Pass dataset.labels=ignore to make a "
            "cache without labels."
        )
    if classes != teacher.spec.num_classes or int(images.label_N.max()) >= classes:
        raise CacheMismatch(
            f"the labels of {images.source} speak of {images.num_classes} classes, the teacher of "
            f"{teacher.spec.num_classes}. Choose a teacher of these classes, or pass "
            "dataset.labels=ignore when its classes are meant to be others."
        )
    return True, classes


def _spec(recipe: CacheRecipe, dataset: DatasetSpec, teacher: Teacher) -> CacheSpec:
    wanted, classes = recipe.targets, teacher.spec.num_classes
    targets: TargetSpec = replace(
        wanted, k_max=min(wanted.k_max, classes), k_min=min(wanted.k_min, classes)
    )
    block = min(recipe.block_size, dataset.num_samples)
    return CacheSpec(dataset, teacher.spec, recipe.views, targets, block)


def _refuse_other(store: Store, spec: CacheSpec) -> None:
    if found := difference(asdict(store.spec), asdict(spec)):
        raise CacheMismatch(
            f"{store.name} is another cache: {found} in this recipe. Choose another --out for the "
            "new one, or run the command that made the old one."
        )


def _make_missing(
    store: Store, images: Images, forward: Forward, recipe: CacheRecipe, share: Share
) -> None:
    missing = _missing(store)
    mine = [part for i, part in enumerate(store.parts()) if share.has(i)]
    todo = [part for part in mine if part in missing][: share.limit]
    total = sum(len(store.spec.rows(part.block)) for part in store.parts())
    left = sum(len(store.spec.rows(part.block)) for part in todo)
    log.info("%d of %d parts to make", len(todo), len(list(store.parts())))
    if not todo:
        return
    size = recipe.batch_size
    if forward.device.type == "cpu" and size > CPU_BATCH:
        size = CPU_BATCH
        log.info("batches of %d on the CPU: larger ones only wait for memory pages", size)
    worker = Worker(store, images, forward, size, threads.available())
    done = total - left if share == Share() else 0
    try:
        with progress.bar("cache", done + left, "views", done) as advance:
            for block, numbers in _groups(todo, recipe.views_per_decode):
                worker.make(block, numbers, advance)
    finally:
        worker.close()


def _missing(store: Store) -> set[Part]:
    """Parts to make, after a look at the digests of those that are there."""
    missing = set()
    with progress.bar("check parts", len(list(store.parts())), "parts") as advance:
        for part, fault in verifier.faults(store):
            if fault is not None:
                missing.add(part)
                if store.storage.size(part.record) is not None:
                    log.warning("%s is made anew: %s", part, fault)
            advance(1)
    return missing


def _groups(parts: list[Part], size: int) -> list[tuple[int, list[int]]]:
    """Parts as (block, views): up to `size` views of a block are rendered from one decode."""
    by_block: dict[int, list[int]] = {}
    for part in parts:
        by_block.setdefault(part.block, []).append(part.view)
    return [
        (block, numbers[i : i + size])
        for block, numbers in sorted(by_block.items())
        for i in range(0, len(numbers), size)
    ]
