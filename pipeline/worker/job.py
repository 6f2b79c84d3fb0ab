"""One process's work in stage 1: a cache, a teacher on a device, and parts made one after another.

Engines differ in who is asked for which parts; what a part is made of and how is here. Asking
twice for the same part costs a forward pass and changes nothing.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from cache_tools.data.open import open_images, resolve
from cache_tools.runtime import progress, threads
from cache_tools.runtime.signals import StopRequest
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.verify import verify as verifier
from pipeline.recipe import CacheRecipe, TeacherSource
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward, choose_device
from pipeline.teacher.logits import Execution
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import Group, groups
from pipeline.worker.meter import Meter
from pipeline.worker.stage1 import Worker

__all__ = ["Failure", "Group", "Job", "Work", "batch_size", "groups", "missing"]
log = logging.getLogger("kdcache")
CPU_BATCH = 32


@dataclass(frozen=True)
class Job:
    """What every process of a run is told; plain values, so that it can be sent to another."""

    recipe: CacheRecipe
    """What to do."""
    data: str
    """Where the images lie."""
    sources: tuple[TeacherSource, ...]
    """Where the teachers come from."""
    out: str
    """Where the cache lies."""
    device: str | None = None
    """Where the teacher runs; None: the first GPU, else the CPU."""
    random_weights: bool = False
    """For speed trials."""


class Work:
    """A cache, opened or created, and a teacher that is ready to be asked."""

    def __init__(self, job: Job) -> None:
        """Open everything.

        Raises:
            KdcacheError: Any of its kinds.
        """
        recipe = job.recipe
        where = choose_device(job.device)
        size = recipe.views.for_teacher().size
        if where.type == "cpu":
            count, why = threads.for_torch(size)
            torch.set_num_threads(count)
            log.info("%s", why)
        images = open_images(job.data, recipe.dataset.split)
        teacher = teachers.load_all(job.sources, size, recipe.precision, job.random_weights)
        self.store, images = open_cache.open_or_create(recipe, images, teacher, job.out)
        self.store.set_data_path(resolve(job.data))
        how = Execution(recipe.memory_format, recipe.compile)
        forward = Forward(teacher, self.store.spec.targets, where, how)
        batch = batch_size(recipe, where)
        self._worker = Worker(self.store, images, forward, batch, threads.cpu_count())

    @property
    def meter(self) -> Meter:
        """How busy the stages are."""
        return self._worker.meter

    def note(self) -> str:
        """How far it is and how busy the stages are, in a few words."""
        return self.meter.note()

    def make(self, groups: Iterable[Group], done: Callable[[int], None]) -> list[Failure]:
        """Make and commit parts, skipping what another worker commits meanwhile.

        One call for many groups keeps the teacher busy over their borders; an iterator is asked for
        one group more than the teacher has begun, so that groups can be handed out as they are
        needed. In the main thread, SIGINT, SIGTERM and SIGUSR1 ask it to stop.

        Args:
            groups: Which ones, in this order.
            done: Called, in a thread of its own, with the number of views finished; negative when
                a part is lost again.

        Returns:
            Parts that were left out, each with the reason.

        Raises:
            KdcacheError: What concerns more than a part: a full disk, a teacher that says NaN only.
            KeyboardInterrupt: A signal came; what is committed stays.
        """
        with StopRequest() as stop:
            try:
                return self._worker.make(groups, done, stop)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(stop.received) from None

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped."""
        self._worker.close()


def missing(store: Cache) -> set[Part]:
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


def batch_size(recipe: CacheRecipe, where: torch.device) -> int:
    """Views per forward pass."""
    if where.type == "cpu" and recipe.batch_size > CPU_BATCH:
        log.info("batches of %d on the CPU: larger ones only wait for memory pages", CPU_BATCH)
        return CPU_BATCH
    return recipe.batch_size
