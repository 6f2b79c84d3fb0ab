"""Ray engine: an actor for each GPU of a cluster, or several that share its cores.

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

from cache_tools.data.sources import absolute
from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import logs, ray_cluster, threads
from cache_tools.runtime.signals import StopRequest
from cache_tools.runtime.text import counted
from cache_tools.storage import system_errors
from cache_tools.storage.base import MANIFEST
from cache_tools.storage.open import open_storage
from pipeline.engines import work_queue
from pipeline.engines.work_queue import TRIES, WorkQueue
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.job import JobSpec
from pipeline.worker.stage1 import Stage1

log = logging.getLogger("kdcache")
_POLL = 1.0
"""Seconds between updates of the progress."""


@dataclass(frozen=True)
class CallResult:
    """Result of an actor's call; errors are values, as Ray would wrap them in its own."""

    failures: tuple[Failure, ...] = ()
    """Parts of the lot that failed."""
    error: KdcacheError | None = None
    """Error that would stop every actor."""


class ProgressCounter:
    """Actor that counts views for the driver."""

    def __init__(self) -> None:
        self._views: Counter[int] = Counter()

    def add(self, lot: int, views: int) -> None:
        """Count views of a lot."""
        self._views[lot] += views

    def take(self) -> dict[int, int]:
        """Return the views counted since the last call, by lot."""
        taken, self._views = dict(self._views), Counter()
        return taken


class Stage1Actor:
    """Actor that makes parts; each call brings its job, as Ray restarts actors without state."""

    def __init__(self) -> None:
        self._stage1: Stage1 | None = None
        logs.set_up(logging.StreamHandler(), logging.WARNING)

    def make(
        self, job: JobSpec, cores: int, counter: Any, lot: int, groups: Sequence[DecodeGroup]
    ) -> CallResult:
        """Make a lot, except the parts committed already."""
        threads.limit(cores)
        try:
            self._stage1 = self._stage1 or _open(job)
            failures = self._stage1.make(groups, lambda views: counter.add.remote(lot, views))
        except Exception as error:
            if (known := system_errors.explained(error)) is None:
                raise
            return CallResult(error=known)
        return CallResult(tuple(failures))


def _open(job: JobSpec) -> Stage1:
    if open_storage(job.out).size(MANIFEST) is None:
        raise UsageError(
            f"the node {socket.gethostname()} cannot find the cache {job.out}. Pass --out with a "
            "folder that all nodes share, or a URL such as s3://…"
        )
    return Stage1.open(job)


class RayEngine:
    """Ray's actors as an `Engine`."""

    def __init__(
        self, job: JobSpec, workers: int | None = None, address: str | None = None
    ) -> None:
        """Open or create the cache, and join a cluster or start one on this machine.

        Raises:
            UsageError: Ray is not installed, or there is no cluster at the address.
            KdcacheError: Any of its kinds.
        """
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray. Run: pip install 'kdcache[ray]'.") from None
        self._ray: Any = ray
        self._joined = not self._ray.is_initialized()
        if self._joined:
            ray_cluster.join(self._ray, address)
        self._job = _absolute_paths(job)
        self.store, _, _ = open_cache.open_job(self._job)
        self._resources = _resources(self._ray.nodes(), self._job.device, workers)
        self._redirected = contextlib.ExitStack()
        # stdout is for results, not for the output of actors.
        self._redirected.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._started: list[Any] = []
        self._done_parts = 0

    def make(
        self, groups: Sequence[DecodeGroup], on_progress: Callable[[int], None]
    ) -> list[Failure]:
        """Make and commit parts, as `Engine.make`."""
        ray, (count, gpus, cores) = self._ray, self._resources
        count = min(count, len(groups))
        each = f"{counted(gpus, 'GPU')} and {counted(cores, 'core')} each"
        log.info(f"{counted(count, 'actor')} of Ray with {each}")
        forever = {"max_restarts": -1, "max_task_retries": -1}
        counter = ray.remote(ProgressCounter).options(num_cpus=0, **forever).remote()
        actor = ray.remote(Stage1Actor).options(
            num_gpus=gpus, num_cpus=cores, max_restarts=-1, max_task_retries=TRIES - 1
        )
        idle = [actor.remote() for _ in range(count)]
        self._started = [counter, *idle]
        queue = WorkQueue(groups, count)
        failures: list[Failure] = []
        at_work: dict[Any, tuple[Any, int, list[DecodeGroup]]] = {}
        done_views: Counter[int] = Counter()
        number = 0
        with StopRequest() as stop, ray_cluster.watched(ray):
            while queue or at_work:
                while idle and (lot := queue.take()):
                    maker, number = idle.pop(), number + 1
                    call = maker.make.remote(self._job, cores, counter, number, lot)
                    at_work[call] = maker, number, lot
                ready, _ = ray.wait(list(at_work), timeout=_POLL)
                for of, views in ray_cluster.fetch(ray, counter.take.remote()).items():
                    done_views[of] += views
                    on_progress(views)
                for answer in ready:
                    maker, of, lot = at_work.pop(answer)
                    left = self._collect(answer, lot, failures)
                    queue.requeue(left)
                    made = work_queue.rows(self.store, lot) - work_queue.rows(self.store, left)
                    on_progress(made - done_views[of])
                    done_views[of] = made
                    self._done_parts += sum(len(group.views) for group in lot)
                    idle.append(maker)
                if stop.requested:
                    raise KeyboardInterrupt(stop.received)
        for group in queue.given_up:
            failures += [Failure(part, _GIVEN_UP, "WorkersLost") for part in group.parts]
        return failures

    def _collect(
        self, answer: Any, lot: list[DecodeGroup], failures: list[Failure]
    ) -> list[DecodeGroup]:
        """Fetch a call's result; the groups left of the lot if it was lost too often."""
        try:
            result: CallResult = ray_cluster.fetch(self._ray, answer)
        except self._ray.exceptions.RayError as error:
            left = work_queue.uncommitted(self.store, lot)
            first = str(error).partition("\n")[0]
            log.warning(
                f"an actor was lost {TRIES} times with {work_queue.names(left)} in hand: {first}"
            )
            return left
        if result.error is not None:
            raise result.error
        failures += result.failures
        return []

    def note(self) -> str:
        """Parts done."""
        return f"{counted(self._done_parts, 'part')} done by Ray"

    def close(self) -> None:
        """End the actors, and a cluster that was started for them."""
        for actor in self._started:
            with contextlib.suppress(Exception):  # Ray raises many kinds for what is gone already
                self._ray.kill(actor)
        if self._joined:
            self._ray.shutdown()
        self._redirected.close()


_GIVEN_UP = (
    f"actors were lost {TRIES} times at it, each after {TRIES} tries; Ray's log has the reasons"
)


def _resources(
    nodes: Sequence[dict[str, Any]], device: str | None, workers: int | None
) -> tuple[int, int, int]:
    """Return the number of actors, and GPUs and cores of each.

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


def _absolute_paths(job: JobSpec) -> JobSpec:
    """Make the paths of a job valid in any working directory."""
    sources = tuple(
        replace(s, name=_absolute(s.name), class_map=_absolute(s.class_map)) for s in job.sources
    )
    return replace(job, data=absolute(job.data), sources=sources, out=absolute(job.out))


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if name and Path(name).exists() else name
