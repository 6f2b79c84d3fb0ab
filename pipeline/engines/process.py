"""A worker process of the local engine: a `Work` behind a pipe.

It ends by itself when its parent is gone, however that went, and watches that before it imports
anything heavy. Ctrl-C is heeded by the parent, which tells its workers to stop.
"""

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from cache_tools.errors import KdcacheError
from cache_tools.runtime import progress, threads

if TYPE_CHECKING:
    from pipeline.worker.job import Failure

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Said:
    """A line of a worker's log."""

    level: int
    text: str


@dataclass(frozen=True)
class Did:
    """Progress within a lot."""

    views: int
    """Views just finished; negative when they are lost again."""
    parts: int
    """Parts committed since it was started."""
    note: str
    """How busy it is."""


@dataclass(frozen=True)
class Made:
    """A lot is through: whoever gets this may hand out the next one."""

    failures: "tuple[Failure, ...]" = ()
    """Parts of it that were left out."""


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on, and no other one could."""

    error: KdcacheError


Message = Said | Did | Made | Failed


def main(cores: int, pipe: Connection) -> None:
    """Take a job from the pipe, then lots, and make them until it says None.

    Args:
        cores: Processor cores it may use.
        pipe: Lots in, messages out.
    """
    # Ctrl-C and Slurm's warning reach every process: one that was told twice would not finish what
    # it could. Before there is a thread, as threads inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tell = _Voice(pipe)
    log.handlers[:] = [tell]
    log.setLevel(logging.INFO)
    log.propagate = False
    progress.bars = False
    warnings.simplefilter("ignore", UserWarning)
    threads.limit(cores)
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        try:
            _serve(pipe, tell.send)
        except KdcacheError as error:
            tell.send(Failed(error))


def _serve(pipe: Connection, send: Callable[[Message], None]) -> None:
    from pipeline.worker.job import Work

    work = Work(pipe.recv())
    try:
        send(Made())
        while (lot := pipe.recv()) is not None:
            failures = work.make(lot, lambda views: send(Did(views, work.meter.parts, work.note())))
            send(Made(tuple(failures)))
    finally:
        work.close()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Voice(logging.Handler):
    """Sends messages to the parent, log lines among them: the terminal is the parent's."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def send(self, message: Message) -> None:
        """Send a message, from whichever thread."""
        with self.lock:  # type: ignore[union-attr]
            self._pipe.send(message)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        self._pipe.send(Said(record.levelno, record.getMessage()))
