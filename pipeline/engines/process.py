"""Worker process of the local engine: a `Stage1` behind a pipe.

It ends by itself after the end of its parent, of whatever kind, and watches for it before it
imports anything heavy. Ctrl-C is the parent's to handle, which stops its workers.
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
from cache_tools.runtime import progress, signals, threads
from cache_tools.storage import system_errors

if TYPE_CHECKING:
    from pipeline.worker.failures import Failure

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class LogLine:
    """Line of a worker's log."""

    level: int
    text: str


@dataclass(frozen=True)
class Progress:
    """Progress within a lot."""

    views: int
    """Views just finished; negative when they are lost again."""
    parts: int
    """Parts committed since its start."""
    note: str
    """Load, in a few words."""


@dataclass(frozen=True)
class Done:
    """End of a lot: the worker waits for the next one."""

    failures: "tuple[Failure, ...]" = ()
    """Parts of the lot that failed."""


@dataclass(frozen=True)
class Error:
    """Error that would stop every worker."""

    error: KdcacheError


Message = LogLine | Progress | Done | Error


def main(cores: int, pipe: Connection) -> None:
    """Receive a job from the pipe, then lots, and make them on `cores` cores until None comes."""
    # Ctrl-C and Slurm's warning reach every process, and are the parent's to handle. Blocked before
    # there is a thread, as threads inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    messages = _MessageHandler(pipe)
    log.handlers[:] = [messages]
    log.setLevel(logging.INFO)
    log.propagate = False
    progress.bars = False
    warnings.simplefilter("ignore", UserWarning)
    threads.limit(cores)
    before = signals.interrupts()
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        signal.signal(signal.SIGTERM, signals.interrupt)
        signals.raise_dropped_again()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            _serve(pipe, messages.send)
        except Exception as error:
            if signals.interrupts() > before:
                signals.forget_dropped()
                return
            if (known := system_errors.explained(error)) is None:
                raise
            messages.send(Error(known))


def _serve(pipe: Connection, send: Callable[[Message], None]) -> None:
    from pipeline.worker.stage1 import Stage1

    stage1 = Stage1.open(pipe.recv())
    try:
        send(Done())
        while (lot := pipe.recv()) is not None:
            failures = stage1.make(
                lot, lambda views: send(Progress(views, stage1.meter.parts, stage1.note()))
            )
            send(Done(tuple(failures)))
    finally:
        stage1.close()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _MessageHandler(logging.Handler):
    """Sender of messages to the parent, log lines among them: the terminal is the parent's."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def send(self, message: Message) -> None:
        """Send a message, from any thread."""
        with self.lock:  # type: ignore[union-attr]
            self._pipe.send(message)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log line."""
        self._pipe.send(LogLine(record.levelno, record.getMessage()))
