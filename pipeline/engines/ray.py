"""The Ray engine: an actor for each GPU that a cluster lends, or several that share its cores.

Ray starts the actors, on whichever node, and starts those again that are lost with a process or a
node; a call they had in hand is made again and skips what was committed. The driver hands out lots
and shows the progress. Every node must see the cache and the images under the same names.
"""

import contextlib
import logging
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache_tools.data.open import resolve
from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import ray_cluster, threads
from cache_tools.runtime.signals import StopRequest
from cache_tools.storage import backends
from pipeline.engines import work_queue
from pipeline.engines.work_queue import TRIES, Lots
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.job import Group, Job, Work

log = logging.getLogger("kdcache")
_POLL = 1.0
"""Seconds between looks at the progress."""


@dataclass(frozen=True)
class Made:
    """What an actor answers: errors are values, as Ray would wrap them in its own."""

    failures: tuple[Failure, ...] = ()
    """Parts of the lot that were left out."""
    error: KdcacheError | None = None
    """What keeps the actor, and any other, from going on."""


class Tally:
    """An actor that counts views for the driver."""

    def __init__(self) -> None:
        self._views: Counter[int] = Counter()

    def add(self, lot: int, views: int) -> None:
        """Count views of a lot."""
        self._views[lot] += views

    def take(self) -> dict[int, int]:
        """What was counted since the last time, by lot."""
        taken, self._views = dict(self._views), Counter()
        return taken


class Maker:
    """An actor that makes parts. What it needs comes with each call: Ray starts it again bare."""

    def __init__(self) -> None:
        self._work: Work | None = None
        log.handlers[:] = [logging.StreamHandler()]
        log.setLevel(logging.WARNING)

    def make(self, job: Job, cores: int, tally: Any, lot: int, groups: Sequence[Group]) -> Made:
        """Make a lot; what is committed of it is skipped."""
        threads.limit(cores)
        try:
            self._work = self._work or _open(job)
            failures = self._work.make(groups, lambda views: tally.add.remote(lot, views))
        except KdcacheError as error:
            return Made(error=error)
        return Made(tuple(failures))


def _open(job: Job) -> Work:
    if backends.open_storage(job.out).size(backends.MANIFEST) is None:
        raise UsageError(
            f"the node {socket.gethostname()} does not see the cache {job.out}. Pass --out with a "
            "folder that all nodes share, or a URL such as s3://…"
        )
    return Work(job)


class Actors:
    """Ray's actors behind the interface of `Work`."""

    def __init__(self, job: Job, workers: int | None = None, address: str | None = None) -> None:
        """Open the cache, or make it, and join a cluster or start one on this machine.

        Raises:
            UsageError: Ray is not installed, or there is no cluster at the address.
            KdcacheError: Any of its kinds.
        """
        self._ray = _import()
        self._joined = not self._ray.is_initialized()
        if self._joined:
            ray_cluster.join(self._ray, address)
        self._job = _anywhere(job)
        facts = self._job.recipe, self._job.data, self._job.sources, self._job.out
        self.store = open_cache.prepare(*facts, job.random_weights)
        self._share = _share(self._ray.nodes(), self._job.device, workers)
        self._aside = contextlib.ExitStack()
        # What Ray prints of its actors is no result.
        self._aside.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._started: list[Any] = []
        self._done_parts = 0

    def make(self, groups: Sequence[Group], done: Callable[[int], None]) -> list[Failure]:
        """Make and commit parts; see `Engine`."""
        ray, (count, gpus, cores) = self._ray, self._share
        count = min(count, len(groups))
        log.info(f"{count} actors of Ray with {gpus} GPUs and {cores} cores each")
        tally = ray.remote(Tally).options(num_cpus=0, max_restarts=-1).remote()
        maker = ray.remote(Maker).options(
            num_gpus=gpus, num_cpus=cores, max_restarts=-1, max_task_retries=TRIES - 1
        )
        makers = [maker.remote() for _ in range(count)]
        self._started = [tally, *makers]
        with StopRequest() as stop:
            return self._spread(Lots(groups, count), makers, tally, done, stop)

    def _spread(
        self,
        waiting: Lots,
        idle: list[Any],
        tally: Any,
        done: Callable[[int], None],
        stop: StopRequest,
    ) -> list[Failure]:
        """Hand out lots until all are made; parts that were left out."""
        failures: list[Failure] = []
        at_work: dict[Any, tuple[Any, int, list[Group]]] = {}
        counted: Counter[int] = Counter()
        number = 0
        while waiting or at_work:
            while idle and (lot := waiting.take()):
                maker, number = idle.pop(), number + 1
                call = maker.make.remote(self._job, self._share[2], tally, number, lot)
                at_work[call] = maker, number, lot
            ready, _ = self._ray.wait(list(at_work), timeout=_POLL)
            for of, views in self._ray.get(tally.take.remote()).items():
                counted[of] += views
                done(views)
            for answer in ready:
                maker, of, lot = at_work.pop(answer)
                left = self._heed(answer, lot, failures)
                waiting.give_back(left)
                made = work_queue.rows(self.store, lot) - work_queue.rows(self.store, left)
                done(made - counted[of])
                counted[of] = made
                self._done_parts += sum(len(group.views) for group in lot)
                idle.append(maker)
            if stop.requested:
                raise KeyboardInterrupt(stop.received)
        for group in waiting.given_up:
            failures += [Failure(part, _GIVEN_UP, "WorkersLost") for part in group.parts]
        return failures

    def _heed(self, answer: Any, lot: list[Group], failures: list[Failure]) -> list[Group]:
        """Take an actor's answer; what is left of the lot when it was lost too often."""
        try:
            made: Made = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            left = work_queue.uncommitted(self.store, lot)
            first = str(error).partition("\n")[0]
            log.warning(
                f"an actor was lost {TRIES} times with {work_queue.names(left)} in hand: {first}"
            )
            return left
        if made.error is not None:
            raise made.error
        failures += made.failures
        return []

    def note(self) -> str:
        """Parts that are done."""
        return f"{self._done_parts} parts done by Ray"

    def close(self) -> None:
        """End the actors, and a cluster that was started for them."""
        for actor in self._started:
            with contextlib.suppress(Exception):  # Ray raises many kinds for what is gone already
                self._ray.kill(actor)
        if self._joined:
            self._ray.shutdown()
        self._aside.close()


_GIVEN_UP = f"actors were lost {TRIES} times at it, each after {TRIES} tries; Ray's log says how"


def _import() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray. Run: pip install 'kdcache[ray]'.") from None
    return ray


def _share(
    nodes: Sequence[dict[str, Any]], device: str | None, workers: int | None
) -> tuple[int, int, int]:
    """Actors, and GPUs and cores of each.

    Raises:
        UsageError: The cluster has fewer GPUs than workers.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [r for r in alive if r.get("GPU", 0) >= 1] if device != "cpu" else []
    if not with_gpu:
        count = workers or len(alive)
        cores = [int(r.get("CPU", 0)) for r in alive]
        return count, 0, max(1, min(sum(cores) // count, *cores))
    gpus = int(sum(r["GPU"] for r in with_gpu))
    if workers and workers > gpus:
        raise UsageError(f"--workers {workers} are more than the {gpus} GPUs of Ray's cluster.")
    return workers or gpus, 1, max(1, min(int(r.get("CPU", 1) // r["GPU"]) for r in with_gpu))


def _anywhere(job: Job) -> Job:
    """The job with paths that mean the same in another process's folder."""
    sources = tuple(
        replace(s, name=_absolute(s.name), class_map=_absolute(s.class_map)) for s in job.sources
    )
    data = resolve(job.data)
    return replace(job, data=data, sources=sources, out=resolve(job.out))


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if name and Path(name).exists() else name
