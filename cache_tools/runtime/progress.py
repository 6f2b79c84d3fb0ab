"""One progress bar for everything that takes longer than five seconds, on stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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
from rich.table import Column
from rich.text import Text

log = logging.getLogger("kdcache")
_LOG_SECONDS = 30.0
bars: bool | None = None
"""True draws on the terminal, False never does; None: where messages of INFO are logged."""


@contextmanager
def shown(draw: bool) -> Iterator[None]:
    """Draw bars in the body, or none, whatever is logged: for callers of functions."""
    global bars  # noqa: PLW0603 - there is one terminal
    before, bars = bars, draw
    try:
        yield
    finally:
        bars = before


class Advance(Protocol):
    """Progress callback of `bar`."""

    def __call__(self, count: int, note: str = "", /) -> None:
        """Count units just done; a note stays beside the bar until the next one."""


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed or 0, f" {self._unit}"))


def _rate(per_second: float, unit: str = "") -> str:
    if 0 < per_second < 1:
        return f"{1 / per_second:.0f} s each"
    return f"{per_second:,.0f}{unit}/s"


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show progress while the body runs.

    On a terminal this is a bar with rate and remaining time; elsewhere (a log file) a line every
    half minute. Units of an earlier run do not count into the rate, nor does the start: the time of
    the first units, once there are others.

    `unit` is a plural; `done`: units done by an earlier run.

    Yields:
        Callback for the number of units just done and, optionally, a note.
    """
    drawn = log.isEnabledFor(logging.INFO) if bars is None else bars
    if not (drawn and sys.stderr.isatty()):
        with _logged(label, total, unit, done) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # the bar gives way, so that all fits into one line
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, expand=True, redirect_stdout=False) as progress:
        task = progress.add_task(label, total=total, completed=done, note="")

        def advance(count: int, note: str = "", /) -> None:
            progress.advance(task, count)
            if note:
                progress.update(task, note=note)

        yield advance


@contextmanager
def _logged(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    begin = last = time.monotonic()
    new, latest = 0, ""
    first = 0, begin

    def advance(count: int, note: str = "", /) -> None:
        nonlocal new, last, latest, first
        now = time.monotonic()
        if not new:
            first = count, now
        new, latest = new + count, note or latest
        if now - last >= _LOG_SECONDS and new:
            since = first if new > first[0] else (0, begin)
            last, rate = now, (new - since[0]) / max(now - since[1], 1e-9)
            left = (total - done - new) / rate
            log.info(
                f"{label}: {done + new} of {total} {unit}, {_rate(rate)}, {left:.0f} s left"
                + (f", {latest}" if latest else "")
            )

    yield advance
