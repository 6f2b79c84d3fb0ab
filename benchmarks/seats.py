"""Contestants in processes of their own, one epoch of one of them at a time.

FFCV's own loader makes a type of numba's read-only for its whole process, after which other
compiled code is not found; so loaders of different libraries do not share a process. Those whose
libraries are in another environment run in its interpreter. All are measured by the same code, in
their own process.
"""

import logging
import multiprocessing
import os
import resource
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.pipelines import Epoch, Make

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Turn:
    """Time of one epoch per view."""

    cpu: float
    """CPU seconds of all threads and workers."""
    wall: float
    """Seconds."""


class Seat:
    """A process in which contestants run, one at a time."""

    def __init__(self, orders: Connection, join: Callable[[], object]) -> None:
        """Take the end of a pipe to `serve`, and a function that waits for its process."""
        self._orders, self._join = orders, join

    @classmethod
    def of(cls, contestants: Mapping[str, Make]) -> "Seat":
        """Start a process; a contestant is made when it has its first turn on a folder."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, contestants))
        process.start()
        theirs.close()
        return cls(ours, process.join)

    @classmethod
    def in_interpreter(cls, python: str, module: str) -> "Seat":
        """Start another Python with a module that calls `serve` on the pipe of a number."""
        ours, theirs = multiprocessing.Pipe()
        command = [python, "-m", module, str(theirs.fileno())]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        return cls(ours, process.wait)

    def turn(self, folder: Path, name: str, epoch: int) -> Turn:
        """Run an epoch of a contestant on the pictures in a folder."""
        self._orders.send((folder, name, epoch))
        turn: Turn = self.answer()
        return turn

    def answer(self) -> Any:
        """Receive what the process sends next."""
        answer = self._orders.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._orders.close()
        self._join()


def serve(orders: Connection, contestants: Mapping[str, Make]) -> None:
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
            orders.send(timed(made[folder, name], epoch))
        except Exception:  # its class may be one that this process alone can import
            orders.send(RuntimeError(f"{name}: {traceback.format_exc()}"))


def timed(run: Epoch, epoch: int) -> Turn:
    """Run an epoch by both clocks."""
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
