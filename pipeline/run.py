"""`kdcache cache` from end to end: open data and teacher, make the missing parts.

Resuming is running the same command again. Committed parts are checked by their digests first;
damaged ones are made anew.
"""

import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheDamaged, CacheIncomplete, KdcacheError
from cache_tools.runtime import progress, threads
from cache_tools.runtime.device import select
from cache_tools.runtime.text import counted
from cache_tools.storage.open import open_storage
from cache_tools.store import info, presence, resume
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import gradient_error
from cache_tools.targets.gradient_error import Use
from cache_tools.verify import verify
from pipeline.engines import base
from pipeline.engines.base import Engine
from pipeline.planning import estimate
from pipeline.recipe import CacheRecipe, TeacherSource
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.teacher.logits import Execution
from pipeline.worker import failures as outcome
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import decode_groups
from pipeline.worker.job import JobSpec, batch_size
from pipeline.worker.stage1 import Stage1

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class CacheResult:
    """A cache after a run.

    Attributes:
        path: Its path or URL.
        parts_done: Committed parts.
        parts_total: All parts.
        views: Views in the committed parts.
        bytes: Bytes of their chunks.
        fingerprint: Identity of data set, teacher, views and storage: "sha256:" and 64 digits.
        content_id: Digest of the fingerprint and of all targets, likewise: equal caches have equal
            ones.
        facts: All that `kdcache info --json` prints.
    """

    path: str
    parts_done: int
    parts_total: int
    views: int
    bytes: int
    fingerprint: str
    content_id: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, store: Cache) -> "CacheResult":
        """Collect the facts of a cache from its commit records."""
        facts = info.info(store)
        parts, ids = facts["parts"], (facts["fingerprint"], facts["content_id"])
        views, size = facts["targets"], facts["bytes"]
        return cls(store.name, parts["done"], parts["total"], views, size, *ids, facts)


@dataclass(frozen=True)
class PartSelection:
    """Selection of the parts that this process makes.

    Tasks divide decode groups: a block in `views_per_decode` neighbouring views. The division
    depends on nothing that changes while others work.
    """

    task: int = 0
    """Number of this task, from 0."""
    tasks: int = 1
    """Count of tasks."""
    limit: int | None = None
    """Largest number of parts; None = all."""
    numbers: frozenset[int] = frozenset()
    """Only of these parts, in the order of `Cache.parts`; empty = all."""

    def of(self, store: Cache, views_per_decode: int) -> list[Part]:
        """Select from the parts of a cache."""
        blocks = store.spec.num_blocks
        return [
            part
            for number, part in enumerate(store.parts())
            if (not self.numbers or number in self.numbers)
            and (part.view // views_per_decode * blocks + part.block) % self.tasks == self.task
        ]


def run(
    recipe: CacheRecipe,
    data: str,
    teachers: str | Sequence[TeacherSource],
    out: str | Path,
    device: str | None = None,
    random_weights: bool = False,
    selection: PartSelection = PartSelection(),
    engine: base.Open = Stage1.open,
    force: bool = False,
) -> Cache:
    """Make a cache, or its missing parts.

    Args:
        recipe: Recipe of the cache.
        data: Path or URL of the images.
        teachers: Name of the teacher, or sources of one or several.
        out: Path of the cache, or a URL of fsspec's kinds.
        device: Device of the teacher.
        random_weights: Use of an untrained teacher, for speed trials.
        selection: Parts to make.
        engine: Opens the engine; by default, this process.
        force: Go on with a teacher that agrees with the labels no more often than by chance.

    Raises:
        KdcacheError: Any of its kinds; committed parts stay, a cache without any is removed.
        KeyboardInterrupt: A signal came; the text has the parts kept and the command to continue.
    """
    sources = [TeacherSource(teachers)] if isinstance(teachers, str) else teachers
    job = JobSpec(recipe, data, tuple(sources), str(out), device, random_weights, force)
    opened: Engine | None = None
    try:
        opened = engine(job)
        if selection.tasks == 1 and not selection.numbers:
            presence.warn_of_others(opened.store)
        with presence.announced(opened.store):
            failures = _make_missing(opened, recipe, selection, warn=not random_weights)
    except KeyboardInterrupt as signal:
        if opened is None:
            raise
        raise KeyboardInterrupt(outcome.interrupted(opened.store, str(signal))) from None
    except KdcacheError:
        if selection.tasks == 1:  # others of its tasks may be about to write into it
            with contextlib.suppress(KdcacheError):
                resume.discard_empty(opened.store.storage if opened else open_storage(out))
        raise
    finally:
        if opened is not None:
            opened.close()
    outcome.refuse_failures(opened.store, failures)
    return opened.store


def measure(
    recipe: CacheRecipe,
    images: ImageDataset,
    sources: Sequence[TeacherSource],
    device: str | None = None,
    random_weights: bool = False,
) -> dict[str, Any]:
    """Measure a few real batches to estimate the hours (`estimate.measure`); adds `classes`.

    Raises:
        UsageError, TeacherError, DataError, CacheMismatch: As `run` would.
    """
    target = select(torch, device)
    size = recipe.views.for_teacher().size
    if target.type == "cpu":
        torch.set_num_threads(threads.for_torch(size)[0])
    teacher = teachers.load_all(sources, size, recipe.precision, random_weights)
    open_cache.choose_labels(recipe, images, teacher.spec)
    classes = teacher.spec.num_classes
    execution = Execution(recipe.memory_format, recipe.compile)
    forward = Forward(teacher, recipe.targets_of(classes), target, execution)
    facts = estimate.measure(recipe, images, teacher, forward, batch_size(recipe, target))
    if random_weights:
        del facts["kept_classes"]  # an untrained network has nearly uniform outputs
    return facts | {"classes": classes}


def find_missing(store: Cache, selection: PartSelection, views_per_decode: int) -> list[Part]:
    """List the parts of a selection that are missing or damaged, by the digests of all."""
    missing = set()
    parts = list(store.parts())
    with progress.bar("check parts", len(parts), "parts") as advance:
        for part, fault in verify.faults(store):
            if fault is not None:
                missing.add(part)
                if store.storage.size(part.record) is not None:
                    log.warning("%s is made anew: %s", part, fault)
            advance(1)
    selected = selection.of(store, views_per_decode)
    todo = [part for part in selected if part in missing][: selection.limit]
    log.info("%d of %s to make", len(todo), counted(len(parts), "part"))
    return todo


def views_bar(
    store: Cache, todo: Sequence[Part], selection: PartSelection
) -> AbstractContextManager[progress.Advance]:
    """Progress bar of the views of missing parts."""
    total = sum(len(store.spec.rows(part.block)) for part in store.parts())
    left = sum(len(store.spec.rows(part.block)) for part in todo)
    done = total - left if selection == PartSelection() else 0
    return progress.bar("cache", done + left, "views", done)


def _make_missing(
    engine: Engine, recipe: CacheRecipe, selection: PartSelection, warn: bool
) -> list[Failure]:
    """Make parts; with `warn`, compare the first one with what its temperatures require."""
    store = engine.store
    size = recipe.views_per_decode
    groups = decode_groups(find_missing(store, selection, size), size, recipe.order)
    todo = [part for group in groups for part in group.parts]
    unchecked, done = warn and not _check_targets(store, Part(0, 0)), 0
    if not todo:
        return []
    step = due = len(store.spec.rows(todo[0].block)) * len(groups[0].views)

    def finished(views: int) -> None:
        nonlocal unchecked, done, due
        advance(views, engine.note())
        done += views
        if unchecked and done >= due:
            due, unchecked = done + step, not _check_targets(store, todo[0])

    with views_bar(store, todo, selection) as advance:
        failures = engine.make(groups, finished)
    if unchecked:
        _check_targets(store, todo[0])
    return failures


def _check_targets(store: Cache, part: Part) -> bool:
    """Log for which declared temperatures a part keeps too few classes; False if it is missing."""
    try:
        sample = CacheEnsemble((store,), (1.0,)).sample(part.view, part.block)
    except (CacheDamaged, CacheIncomplete):
        return False
    spec, classes = store.spec.targets, store.spec.teacher.num_classes
    uses = [Use(t, t) for t in spec.temperatures]
    for line in gradient_error.shortfalls(sample, spec, classes, uses, store.name):
        log.warning(line)
    return True
