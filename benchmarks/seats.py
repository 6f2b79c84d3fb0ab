"""Contestants in processes of their own, one epoch of one of them at a time.

FFCV's own loader makes a type of numba's read-only for its whole process, after which other
compiled code is not found; so loaders of different libraries do not share a process.
"""

import logging
import multiprocessing
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.pipelines import Epoch, Make


@dataclass(frozen=True)
class Turn:
    """Time of one epoch per view."""

    cpu: float
    """CPU seconds of all threads and workers."""
    wall: float
    """Seconds."""


class Seat:
    """A process in which contestants run, one at a time."""

    def __init__(self, contestants: Mapping[str, Make]) -> None:
        """Start it; a contestant is made when it has its first turn on a folder."""
        context = multiprocessing.get_context("spawn")
        self._to, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestants))
        self._process.start()
        theirs.close()

    def turn(self, folder: Path, name: str, epoch: int) -> Turn:
        """Run an epoch of a contestant on the pictures in a folder."""
        self._to.send((folder, name, epoch))
        answer = self._to.recv()
        if isinstance(answer, Exception):
            raise answer
        turn: Turn = answer
        return turn

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.join()


def _serve(orders: Connection, contestants: Mapping[str, Make]) -> None:
    """Run requested epochs until the pipe closes."""
    multiprocessing.set_start_method("fork", force=True)  # of the loaders' workers: Linux's own
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    made: dict[tuple[Path, str], Epoch] = {}
    while True:
        try:
            folder, name, epoch = orders.recv()
        except EOFError:
            return
        try:
            if (folder, name) not in made:
                made[folder, name] = contestants[name](folder)
            orders.send(_timed(made[folder, name], epoch))
        except Exception as error:
            orders.send(error)


def _timed(run: Epoch, epoch: int) -> Turn:
    cpu, wall = _cpu(), time.perf_counter()
    count = run(epoch)
    return Turn((_cpu() - cpu) / count, (time.perf_counter() - wall) / count)


def _cpu() -> float:
    """CPU seconds so far of this process and of the workers it has or had."""
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total
