"""One progress bar for everything that takes longer than five seconds, on stderr."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger("kdcache")
_LOG_SECONDS = 30.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress while the body runs.

    On a terminal this is a bar with rate and remaining time; elsewhere (a log file) a line every
    half minute. Work that was already done before this run does not count into the rate.

    Args:
        label: What is going on.
        total: Units in all.
        unit: Name of the units, plural.
        done: Units done by an earlier run.

    Yields:
        A function to call with the number of units just done.
    """
    if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
        with _logged(label, total, unit, done) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _logged(label: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    begin = last = time.monotonic()
    new = 0

    def advance(count: int) -> None:
        nonlocal new, last
        new += count
        now = time.monotonic()
        if now - last >= _LOG_SECONDS and new:
            last, rate = now, new / (now - begin)
            left = (total - done - new) / rate
            log.info(
                "%s: %s of %s %s, %.0f/s, %.0f s left", label, done + new, total, unit, rate, left
            )

    yield advance
