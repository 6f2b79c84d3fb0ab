"""`kdcache cache` from end to end: open the data, know the teacher, make what is missing.

Resuming is running the same command again. What is committed is checked by its digests first; what
is damaged is made anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.data.images import ImageDataset
from cache_tools.runtime import progress, threads
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline.engines import base
from pipeline.engines.base import Engine
from pipeline.planning import estimate
from pipeline.recipe import CacheRecipe, TeacherSource
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward, choose_device
from pipeline.teacher.logits import Execution
from pipeline.worker import failures as outcome
from pipeline.worker import open_cache
from pipeline.worker.job import Failure, Job, Work, batch_size, groups, missing

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Share:
    """Which of the missing parts this process makes.

    A share is of decode groups: a block in `views_per_decode` neighbouring views. Which groups are
    whose depends on nothing that changes while others work.
    """

    worker: int = 0
    """Number of this worker, from 0."""
    workers: int = 1
    """How many there are."""
    limit: int | None = None
    """Stop after this many parts."""
    numbers: frozenset[int] = frozenset()
    """Only of these parts, in the order of `Cache.parts`; empty = all."""

    def of(self, store: Cache, views_per_decode: int) -> list[Part]:
        """The parts of this share."""
        blocks = store.spec.num_blocks
        return [
            part
            for number, part in enumerate(store.parts())
            if (not self.numbers or number in self.numbers)
            and (part.view // views_per_decode * blocks + part.block) % self.workers == self.worker
        ]


def run(
    recipe: CacheRecipe,
    data: str,
    teacher_name: str | Sequence[TeacherSource],
    out: str | Path,
    device: str | None = None,
    random_weights: bool = False,
    share: Share = Share(),
    engine: base.Open = Work,
) -> Cache:
    """Make a cache, or what is missing of it.

    Args:
        recipe: What to do.
        data: Where the images lie.
        teacher_name: Name of the teacher, or where one or several come from.
        out: Where the cache lies: a folder, or a URL that fsspec knows.
        device: Where the teacher runs.
        random_weights: For speed trials.
        share: Which of the parts are made.
        engine: Who makes them; this process when nothing is said.

    Raises:
        KdcacheError: Any of its kinds; what is committed stays.
        KeyboardInterrupt: A signal came; its text says what is kept and how to go on.
    """
    named = [TeacherSource(teacher_name)] if isinstance(teacher_name, str) else teacher_name
    opened = engine(Job(recipe, data, tuple(named), str(out), device, random_weights))
    try:
        failures = _make_missing(opened, recipe, share)
    except KeyboardInterrupt as signal:
        raise KeyboardInterrupt(outcome.interrupted(opened.store, str(signal))) from None
    finally:
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
    """What a few real batches say of the time it will take (`estimate.measure`), and `classes`.

    Raises:
        UsageError, TeacherError, DataError, CacheMismatch: As `run` would.
    """
    where = choose_device(device)
    size = recipe.views.for_teacher().size
    if where.type == "cpu":
        torch.set_num_threads(threads.for_torch(size)[0])
    teacher = teachers.load_all(sources, size, recipe.precision, random_weights)
    open_cache.check_labels(recipe, images, teacher)
    classes = teacher.spec.num_classes
    how = Execution(recipe.memory_format, recipe.compile)
    forward = Forward(teacher, recipe.targets_of(classes), where, how)
    facts = estimate.measure(recipe, images, teacher, forward, batch_size(recipe, where))
    if random_weights:
        del facts["kept_classes"]  # what an untrained network says has no size worth knowing
    return facts | {"classes": classes}


def _make_missing(engine: Engine, recipe: CacheRecipe, share: Share) -> list[Failure]:
    store, lacking = engine.store, missing(engine.store)
    mine = share.of(store, recipe.views_per_decode)
    todo = [part for part in mine if part in lacking][: share.limit]
    total = sum(len(store.spec.rows(part.block)) for part in store.parts())
    left = sum(len(store.spec.rows(part.block)) for part in todo)
    log.info("%d of %d parts to make", len(todo), len(list(store.parts())))
    if not todo:
        return []
    done = total - left if share == Share() else 0
    with progress.bar("cache", done + left, "views", done) as advance:
        return engine.make(
            groups(todo, recipe.views_per_decode), lambda views: advance(views, engine.note())
        )
