"""Local engine: a process for each GPU of this machine, or several that share its cores.

The parent opens the cache, hands out lots and shows the progress; it never touches a device. A
worker that is lost (the kernel's out-of-memory killer, a fault in a driver) is replaced, and its
lot goes to another: a lot made twice costs forward passes and changes nothing.
"""

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import threads
from cache_tools.runtime.signals import SIGNALS, StopRequest
from cache_tools.runtime.text import counted
from cache_tools.store.cache import Cache
from pipeline.engines import process, work_queue
from pipeline.engines.process import Done, Error, LogLine, Progress
from pipeline.engines.work_queue import TRIES, WorkQueue
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.job import JobSpec

log = logging.getLogger("kdcache")
START = "spawn"
"""Start method of processes: CUDA does not survive a fork."""
_POLL, _GRACE = 0.5, 25.0
"""Seconds between checks for a signal, and until a worker that does not stop is killed."""
_NO_WORKER_LEFT = (
    f"no worker is left: each was lost {TRIES} times in a row; the log has the reasons. Committed "
    "parts are safe. Fix the cause, or pass a smaller batch_size if memory ran out, and run the "
    "same command again."
)
_GIVEN_UP = f"{TRIES} workers were lost at it; the log has the reasons"


def devices(device: str | None, workers: int | None) -> list[str | None]:
    """Device of each worker: every visible GPU, or that of the command line.

    Raises:
        UsageError: There are fewer devices than workers.
    """
    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    if not gpus:
        if workers and workers > 1 and device not in (None, "cpu"):
            raise UsageError(
                f"--workers {workers} on {device} alone: a GPU takes one. Leave --device out."
            )
        return [device] * (workers or 1)
    if workers and workers > gpus:
        raise UsageError(f"--workers {workers} are more than the {gpus} visible GPUs. Pass fewer.")
    return [f"cuda:{number}" for number in range(workers or gpus)]


class LocalEngine:
    """Worker processes as an `Engine`."""

    def __init__(self, job: JobSpec, devices: Sequence[str | None]) -> None:
        """Open or create the cache; workers start when there is work.

        Raises:
            KdcacheError: Any of its kinds.
        """
        self.store, _, _ = open_cache.open_job(job)
        self._jobs = [replace(job, device=device) for device in devices]
        self._pool: _WorkerPool | None = None

    def make(
        self, groups: Sequence[DecodeGroup], on_progress: Callable[[int], None]
    ) -> list[Failure]:
        """Make and commit parts, as `Engine.make`."""
        with StopRequest() as stop:
            jobs = self._jobs[: len(groups)]
            pool = self._pool = _WorkerPool(self.store, jobs, groups, on_progress)
            try:
                pool.run(stop)
            except BaseException:
                pool.stop()
                raise
            pool.dismiss()
        return pool.failures

    def note(self) -> str:
        """Parts done, and the load of one of the workers."""
        return self._pool.note() if self._pool else ""

    def close(self) -> None:
        """Do nothing: workers run only within `make`."""


@dataclass
class _Worker:
    """A worker process, in its parent."""

    number: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    """True while it waits for a lot."""
    lot: list[DecodeGroup] = field(default_factory=list)
    """Groups in hand."""
    views: int = 0
    """Views of the lot counted so far."""
    parts: int = 0
    """Parts committed."""


class _WorkerPool:
    """Workers of one call of `make`."""

    def __init__(
        self,
        store: Cache,
        jobs: Sequence[JobSpec],
        groups: Sequence[DecodeGroup],
        on_progress: Callable[[int], None],
    ) -> None:
        self._store, self._jobs, self._on_progress = store, jobs, on_progress
        self._queue = WorkQueue(groups, len(jobs))
        self._lost = [0] * len(jobs)  # in a row, with nothing committed in between
        self._cores = max(1, threads.cpu_count() // len(jobs))
        self._workers: dict[Connection, _Worker] = {}
        self._parts, self._note = 0, ""
        self._logged: set[str] = set()
        self.failures: list[Failure] = []
        """Parts that failed."""
        for number in range(len(jobs)):
            self._start(number)

    def run(self, stop: StopRequest) -> None:
        """Hand out lots until all are made."""
        while self._queue or any(worker.lot for worker in self._workers.values()):
            if not self._workers:
                raise KdcacheError(_NO_WORKER_LEFT)
            self._hand_out()
            for pipe in connection.wait(list(self._workers), _POLL):
                self._receive(self._workers[pipe])  # type: ignore[index]
            if stop.requested:
                raise KeyboardInterrupt(stop.received)
        for group in self._queue.given_up:
            self.failures += [Failure(part, _GIVEN_UP, "WorkersLost") for part in group.parts]

    def note(self) -> str:
        """Parts done, and the load of the worker that reported last."""
        parts = self._parts + sum(worker.parts for worker in self._workers.values())
        return f"{counted(parts, 'part')} done, {self._note}"

    def stop(self) -> None:
        """Stop all, and kill those that do not end."""
        for worker in self._workers.values():
            worker.process.terminate()
        self.dismiss()  # a lot that is complete at that moment ends as ever: there is no next one

    def dismiss(self) -> None:
        """End all that have no work left."""
        for worker in self._workers.values():
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        self._end()

    def _end(self) -> None:
        deadline = time.monotonic() + _GRACE
        try:
            for worker in self._workers.values():
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # a second Ctrl-C comes here at once
            for worker in self._workers.values():
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()
            self._workers.clear()

    def _start(self, number: int) -> None:
        context: Any = multiprocessing.get_context(START)
        ours, theirs = context.Pipe()
        child = context.Process(
            target=process.main, args=(self._cores, theirs), name=f"kdcache worker {number}"
        )
        resource_tracker.ensure_running()  # which would unblock them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it has its handlers
        try:
            child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        with contextlib.suppress(OSError):
            ours.send(self._jobs[number])
        self._workers[ours] = _Worker(number, child, ours)

    def _hand_out(self) -> None:
        for worker in self._workers.values():
            if worker.ready and (lot := self._queue.take()):
                worker.ready, worker.lot, worker.views = False, lot, 0
                with contextlib.suppress(OSError):  # it is lost; `_receive` finds out
                    worker.pipe.send(lot)

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        match message:
            case LogLine(level, text):
                if level > logging.INFO or text not in self._logged:  # the same choices in each
                    log.log(level, f"worker {worker.number}: {text}")
                self._logged.add(text)
            case Progress(views, parts, note):
                worker.views += views
                worker.parts = parts
                self._note = f"worker {worker.number}: {note.partition(', ')[2]}"
                self._on_progress(views)
            case Done(failures):
                if worker.lot:
                    self._lost[worker.number] = 0
                self.failures += failures
                worker.ready, worker.lot = True, []
            case Error(error):
                raise error

    def _replace(self, lost: _Worker) -> None:
        """Start another worker in place of a lost one, and queue its groups again."""
        del self._workers[lost.pipe]
        self._parts += lost.parts
        lost.pipe.close()
        lost.process.join()
        left = work_queue.uncommitted(self._store, lost.lot)
        self._on_progress(
            work_queue.rows(self._store, lost.lot) - work_queue.rows(self._store, left) - lost.views
        )
        self._queue.requeue(left)
        self._lost[lost.number] = 1 + (self._lost[lost.number] if left == lost.lot else 0)
        code = lost.process.exitcode
        ending = f"ended with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            lack = ", perhaps for lack of memory," if name == "SIGKILL" else ""
            ending = f"was killed by {name}{lack}"
        log.warning(
            f"worker {lost.number} (process {lost.process.pid}) {ending}"
            + (f" with {work_queue.names(left)} in hand" if left else "")
        )
        if self._lost[lost.number] < TRIES:
            self._start(lost.number)
        else:
            log.warning(f"worker {lost.number} was lost {TRIES} times in a row: it is not replaced")
