"""The local engine: a process for each GPU of this machine, or several that share its cores.

The parent opens the cache, hands out lots and shows the progress; it never touches a device. A
worker that is lost (the kernel's out-of-memory killer, a fault in a driver) is replaced, and what
it had in hand goes to another: a lot given twice costs forward passes and changes nothing.
"""

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import threads
from cache_tools.runtime.signals import StopRequest
from cache_tools.store.cache import Cache
from pipeline.engines import process as worker
from pipeline.engines import work_queue
from pipeline.engines.process import Did, Failed, Made, Said
from pipeline.engines.work_queue import TRIES, Lots
from pipeline.worker import open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.job import Group, Job

log = logging.getLogger("kdcache")
START = "spawn"
"""How processes are started: CUDA does not survive a fork."""
_POLL, _GRACE = 0.5, 25.0
"""Seconds between looks for a signal, and until a worker that was told to stop is killed."""
_NOBODY = (
    f"no worker is left: each was lost {TRIES} times in a row; the log says how. What is committed "
    "is safe. Mend it, or pass a smaller batch_size if memory ran out, and run the same command "
    "again."
)
_GIVEN_UP = f"{TRIES} workers were lost at it; the log says how they ended"


def devices(asked: str | None, workers: int | None) -> list[str | None]:
    """The device of each worker: every visible GPU, or what was asked for.

    Args:
        asked: What --device says.
        workers: How many processes --workers asks for.

    Raises:
        UsageError: There are fewer devices than workers.
    """
    gpus = torch.cuda.device_count() if asked in (None, "cuda") else 0
    if not gpus:
        if workers and workers > 1 and asked not in (None, "cpu"):
            raise UsageError(
                f"--workers {workers} on {asked} alone: a GPU takes one. Leave --device out."
            )
        return [asked] * (workers or 1)
    if workers and workers > gpus:
        raise UsageError(f"--workers {workers} are more than the {gpus} visible GPUs. Pass fewer.")
    return [f"cuda:{number}" for number in range(workers or gpus)]


class Processes:
    """Worker processes behind the interface of `Work`."""

    def __init__(self, job: Job, devices: Sequence[str | None]) -> None:
        """Open the cache, or make it; no worker is started before there is work.

        Raises:
            KdcacheError: Any of its kinds.
        """
        facts = job.recipe, job.data, job.sources, job.out, job.random_weights
        self.store = open_cache.prepare(*facts)
        self._jobs = [replace(job, device=device) for device in devices]
        self._crew: _Crew | None = None

    def make(self, groups: Sequence[Group], done: Callable[[int], None]) -> list[Failure]:
        """Make and commit parts; see `Engine`."""
        crew = self._crew = _Crew(self.store, self._jobs[: len(groups)], groups, done)
        with StopRequest() as stop:
            try:
                crew.work(stop)
            except BaseException:
                crew.stop()
                raise
            crew.dismiss()
        return crew.failures

    def note(self) -> str:
        """Parts that are done, and how busy one of the workers is."""
        return self._crew.note() if self._crew else ""

    def close(self) -> None:
        """Nothing is left: workers live as long as `make` runs."""


@dataclass
class _Member:
    """A worker process as its parent knows it."""

    number: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    """Whether it waits for a lot."""
    lot: list[Group] = field(default_factory=list)
    """What it has in hand."""
    views: int = 0
    """Views of the lot that it has counted."""
    parts: int = 0
    """Parts that it has committed."""


class _Crew:
    """The workers of one call of `make`."""

    def __init__(
        self,
        store: Cache,
        jobs: Sequence[Job],
        groups: Sequence[Group],
        done: Callable[[int], None],
    ) -> None:
        self._store, self._jobs, self._done = store, jobs, done
        self._lots = Lots(groups, len(jobs))
        self._lost = [0] * len(jobs)  # in a row, with nothing committed in between
        self._cores = max(1, threads.cpu_count() // len(jobs))
        self._members: dict[Connection, _Member] = {}
        self._parts, self._note = 0, ""
        self._said: set[str] = set()
        self.failures: list[Failure] = []
        """Parts that were left out."""
        for number in range(len(jobs)):
            self._start(number)

    def work(self, stop: StopRequest) -> None:
        """Hand out lots until all are made."""
        while self._lots or any(member.lot for member in self._members.values()):
            if not self._members:
                raise KdcacheError(_NOBODY)
            self._hand_out()
            for pipe in connection.wait(list(self._members), _POLL):
                self._listen(self._members[pipe])  # type: ignore[index]
            if stop.requested:
                raise KeyboardInterrupt(stop.received)
        for group in self._lots.given_up:
            self.failures += [Failure(part, _GIVEN_UP, "WorkersLost") for part in group.parts]

    def note(self) -> str:
        """Parts that are done, and how busy the worker is that spoke last."""
        parts = self._parts + sum(member.parts for member in self._members.values())
        return f"{parts} parts done, {self._note}"

    def stop(self) -> None:
        """Tell all to stop, and end those that do not."""
        for member in self._members.values():
            member.process.terminate()
        self._end()

    def dismiss(self) -> None:
        """Let all go home."""
        for member in self._members.values():
            with contextlib.suppress(OSError):
                member.pipe.send(None)
        self._end()

    def _end(self) -> None:
        deadline = time.monotonic() + _GRACE
        try:
            for member in self._members.values():
                member.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # a second Ctrl-C comes here at once
            for member in self._members.values():
                member.process.kill()
                member.process.join()
                member.pipe.close()
            self._members.clear()

    def _start(self, number: int) -> None:
        context: Any = multiprocessing.get_context(START)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main,
            args=(self._cores, theirs),
            name=f"kdcache worker {number}",
        )
        process.start()
        theirs.close()
        with contextlib.suppress(OSError):
            ours.send(self._jobs[number])
        self._members[ours] = _Member(number, process, ours)

    def _hand_out(self) -> None:
        for member in self._members.values():
            if member.ready and (lot := self._lots.take()):
                member.ready, member.lot, member.views = False, lot, 0
                with contextlib.suppress(OSError):  # it is gone, as will be heard
                    member.pipe.send(lot)

    def _listen(self, member: _Member) -> None:
        try:
            message = member.pipe.recv()
        except (EOFError, OSError):
            self._replace(member)
            return
        match message:
            case Said(level, text):
                if level > logging.INFO or text not in self._said:  # they choose the same
                    log.log(level, f"worker {member.number}: {text}")
                self._said.add(text)
            case Did(views, parts, note):
                member.views += views
                member.parts = parts
                self._note = f"worker {member.number}: {note.partition(', ')[2]}"
                self._done(views)
            case Made(failures):
                if member.lot:
                    self._lost[member.number] = 0
                self.failures += failures
                member.ready, member.lot = True, []
            case Failed(error):
                raise error

    def _replace(self, lost: _Member) -> None:
        """Start another worker in place of a lost one, and let others have what it left."""
        del self._members[lost.pipe]
        self._parts += lost.parts
        lost.pipe.close()
        lost.process.join()
        left = work_queue.uncommitted(self._store, lost.lot)
        self._done(
            work_queue.rows(self._store, lost.lot) - work_queue.rows(self._store, left) - lost.views
        )
        self._lots.give_back(left)
        self._lost[lost.number] = 1 + (self._lost[lost.number] if left == lost.lot else 0)
        log.warning(
            f"worker {lost.number} (process {lost.process.pid}) {_how(lost.process.exitcode)}"
            + (f" with {work_queue.names(left)} in hand" if left else "")
        )
        if self._lost[lost.number] < TRIES:
            self._start(lost.number)
        else:
            log.warning(f"worker {lost.number} was lost {TRIES} times in a row: it stays away")


def _how(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", perhaps for lack of memory," if name == "SIGKILL" else "")
