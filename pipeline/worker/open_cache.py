"""Open the cache of a run, or create it from a scan of every image.

A cache of other data, another teacher or other views at the same path is refused, naming the
field.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cache_tools.data import match, scan
from cache_tools.data.images import ImageDataset, with_classes
from cache_tools.data.open import open_images, resolve
from cache_tools.errors import (
    CacheMismatch,
    CacheNotFound,
    KdcacheError,
    RecipeError,
    UsageError,
)
from cache_tools.runtime import progress, threads
from cache_tools.runtime.text import printable
from cache_tools.spec import class_names
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.dataset import NO_LABEL, DatasetSpec, KeyKind
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.storage import atomic
from cache_tools.storage.folder import Folder
from cache_tools.storage.open import open_storage
from cache_tools.store import resume
from cache_tools.store.cache import Cache
from pipeline.recipe import CacheRecipe
from pipeline.teacher import teacher as teachers
from pipeline.teacher.teacher import Teacher
from pipeline.worker.job import JobSpec

log = logging.getLogger("kdcache")
_TRIES = 5


def open_job(job: JobSpec) -> tuple[Cache, ImageDataset, Teacher]:
    """Open or create the cache of a job; its images in table order, its teacher on the CPU.

    Raises:
        KdcacheError: Any of its kinds.
    """
    recipe = job.recipe
    images = open_images(job.data, recipe.dataset.split)
    size = recipe.views.for_teacher().size
    teacher = teachers.load_all(job.sources, size, recipe.precision, job.random_weights)
    store, images = open_or_create(recipe, images, teacher.spec, job.out)
    store.set_data_path(resolve(job.data))
    return store, images, teacher


def open_or_create(
    recipe: CacheRecipe, images: ImageDataset, teacher: TeacherSpec, out: str | Path
) -> tuple[Cache, ImageDataset]:
    """Open or create the cache at `out`; the images follow in the order of its table.

    Of several processes that find none, one creates it and the others wait where they can.

    Raises:
        CacheMismatch: There is another cache at `out`, or the labels have other classes.
        DataError, UsageError: The images cannot be read, or not all have a label.
    """
    images, labels = choose_labels(recipe, images, teacher)
    storage = open_storage(out)
    if isinstance(storage, Folder):
        atomic.sweep(storage.path)
    for _ in range(_TRIES):
        if resume.root(storage) is None:
            with storage.creation_lock():
                if resume.root(storage) is None:
                    _create(recipe, images, teacher, labels, out)
        try:
            return _continue(Cache.open(out), recipe, images, teacher, labels)
        except CacheNotFound:  # another process has removed it, for it was empty
            continue
        except CacheMismatch:
            if not resume.discard_empty(storage):
                raise
    raise KdcacheError(f"{storage} is removed again and again by other processes. Stop them.")


def _continue(
    store: Cache,
    recipe: CacheRecipe,
    images: ImageDataset,
    teacher: TeacherSpec,
    labels: tuple[bool, int],
) -> tuple[Cache, ImageDataset]:
    """Mend a cache, and compare it with the one that this recipe makes."""
    if recipe.dataset.labels == "auto" and labels[0] and not store.spec.dataset.labels:
        log.info("%s was begun without labels, and goes on without", store.name)
        labels = False, 0
    store.mend(lambda: _scan(images, store.spec.dataset.key, labels[0])[1])
    images = match.match(store.table, store.spec.dataset, images)
    dataset = replace(store.spec.dataset, labels=labels[0], num_classes=labels[1])
    wanted = _spec(recipe, dataset, teacher).continuing(store.spec)
    if found := difference(store.spec.mapping, wanted.mapping):
        raise CacheMismatch(
            f"{store.name} is another cache: {found} in this recipe. Choose another --out for the "
            "new one, or run the command that made the old one."
        )
    store.resize(recipe.num_views)
    return store, images


def _create(
    recipe: CacheRecipe,
    images: ImageDataset,
    teacher: TeacherSpec,
    labels: tuple[bool, int],
    out: str | Path,
) -> None:
    """Create an empty cache from a scan of every image."""
    kind, table, images = _scan(images, None, labels[0])
    classes = scan.classes_sha256(images) if labels[0] else ""
    dataset = DatasetSpec(len(table), labels[1], labels[0], kind, table.sha256, classes)
    resume.create(out, _spec(recipe, dataset, teacher), table, recipe.num_views)


def _scan(
    images: ImageDataset, kind: KeyKind | None, labels: bool
) -> tuple[KeyKind, SampleTable, ImageDataset]:
    """Make the sample table by reading every image."""
    kind, keys, images = scan.in_table_order(images, kind)
    with progress.bar("scan images", len(keys), "images") as advance:
        return kind, scan.scan(keys, images, labels, threads.cpu_count(), advance), images


def choose_labels(
    recipe: CacheRecipe, images: ImageDataset, teacher: TeacherSpec
) -> tuple[ImageDataset, tuple[bool, int]]:
    """Choose the use of the labels and their number of classes; refuse labels of other classes.

    Returns:
        The images, with the teacher's class numbers if their folders are some of its synsets.
    """
    use = recipe.dataset.labels
    if use == "auto":
        known = class_names.of_teacher(teacher)
        if reason := _unusable(images, known, teacher):
            log.info("labels are not stored: %s", reason)
            use, found = "ignore", len({*images.class_names})
            if not known and found > 1 and found != teacher.num_classes:
                log.warning(
                    "%s has %d classes, the teacher %s predicts %d: check that it is the teacher "
                    "that you mean. dataset.labels=ignore takes it without this message.",
                    images.source, found, teacher.name, teacher.num_classes,
                )  # fmt: skip
        else:
            count = len({*images.class_names})
            log.info("labels are stored: %d of the teacher's %d synsets", count, len(known))
            images = with_classes(images, known)
    if use == "ignore":
        return images, (False, 0)
    classes = recipe.dataset.num_classes or images.num_classes
    if NO_LABEL in images.label_N:
        raise UsageError(
            f"not every image of {images.source} has a label. Pass dataset.labels=ignore to make a "
            "cache without labels."
        )
    highest = int(images.label_N.max())
    if (of_teacher := teacher.num_classes) != classes or highest >= classes:
        mapped = "--class-map FILE, which maps the teacher's classes to those of the data set; or "
        raise CacheMismatch(
            f"{images.source} has {max(classes, highest + 1)} classes, the teacher predicts "
            f"{of_teacher}. Choose a teacher of {classes} classes; or pass "
            f"{mapped if classes < of_teacher else ''}dataset.labels=ignore when its classes are "
            "meant to be others."
        )
    return images, (True, classes)


def _unusable(images: ImageDataset, known: Sequence[str], teacher: TeacherSpec) -> str:
    """Explain why labels are not the synsets `known` that a teacher predicts; "" if they are."""
    if not known:
        return f"the names of the {teacher.num_classes} classes of {teacher.name} are unknown"
    if not images.class_names:
        return f"{images.source} has no class names to compare with the teacher's"
    if NO_LABEL in images.label_N:
        return f"not every image of {images.source} has a class"
    if not (foreign := sorted({*images.class_names} - {*known})):
        return ""
    count = f"{len(foreign):,} of the {len(images.class_names):,} classes of {images.source}"
    return f"{count} are not among the teacher's synsets (first: {printable(foreign[0])!r})"


def _spec(recipe: CacheRecipe, dataset: DatasetSpec, teacher: TeacherSpec) -> CacheSpec:
    targets = recipe.targets_of(teacher.num_classes)
    block = min(recipe.block_size, dataset.num_samples)
    try:
        return CacheSpec(dataset, teacher, recipe.views, targets, block)
    except ValueError as error:  # what the recipe alone cannot tell
        raise RecipeError(f"this cache cannot be made: {error} Correct the recipe.") from None
