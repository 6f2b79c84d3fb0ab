"""One progress bar for everything that takes longer than five seconds, on stderr."""

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from cache_tools.runtime.text import singular

log = logging.getLogger("kdcache")
_FIRST_LOG_SECONDS, _LOG_SECONDS = 10.0, 30.0
_RATE_SECONDS = 30.0
"""The rate is that of at least so many seconds, up to the last unit."""
_START_SECONDS = 5.0
"""The first units count into the rate until others have taken so long."""
_SAMPLE_SECONDS = 0.1
_NARROW_BAR, _NARROW_NOTE = 10, 8
"""Characters of the bar beside a note; of a note, which is left out where it has fewer."""
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


class Bar:
    """Units done, their rate and the time left; the callback of `bar`.

    Units of an earlier run do not count into the rate, nor does the start: the time of the first
    units, once others have taken some seconds. Once all are done, it is that of all of them.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, even: bool = True) -> None:
        """Begin now; arguments as of `bar`."""
        self.label, self.total = label, total
        self.unit = singular(unit) if total == 1 else unit
        self.done = done
        self.note = ""
        self._even = even
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._new = 0
        self._samples: list[tuple[float, int]] = []
        """Seconds of work and units so far: the last before the time of the rate and those in it,
        the latest after all units so far."""
        self._first = 0.0
        self._latest = self._begin
        self._paused = 0.0

    def __call__(self, count: int, note: str = "", /) -> None:
        """Count units just done; a note stays beside the bar until the next one."""
        with self._lock:
            self.note = note or self.note
            if not count:
                return
            self._latest = time.monotonic()
            now = self._latest - self._begin - self._paused
            self._first = self._first if self._new else now
            self._new, self.done = self._new + count, self.done + count
            samples = self._samples
            if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_SECONDS:
                samples.pop()
            samples.append((now, self._new))
            while len(samples) > 2 and samples[1][0] <= now - _RATE_SECONDS:
                del samples[0]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the body out of the rate, not out of the time left."""
        begin = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._paused += time.monotonic() - begin

    @property
    def finished(self) -> bool:
        """True if all units are done."""
        return self.done >= self.total

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, up to the last unit when all are done."""
        return (self._latest if self.finished else time.monotonic()) - self._begin

    def rate(self) -> float | None:
        """Return units per second; None before the first unit and for units of unlike length."""
        with self._lock:
            if not (self._even and self._samples):
                return None
            now, new = self._samples[-1]
            since, before = self._samples[0]
            if self.finished or now - self._first < _START_SECONDS:
                since, before = 0.0, 0
            return (new - before) / max(now - since, 1e-9)

    def seconds_left(self) -> float | None:
        """Return the remaining seconds with as many pauses as so far; None without a rate."""
        if self.finished:
            return 0.0
        rate = self.rate()
        if rate is None:
            return None
        work = max(self._samples[-1][0], 1e-9)
        return (self.total - self.done) / rate * (work + self._paused) / work

    def facts(self) -> list[tuple[str, str]]:
        """Texts of count, rate, elapsed and remaining time, each with its style."""
        width = len(str(self.total))
        rate, left = self.rate(), self.seconds_left()
        shown = [(f"{self.done:{width}d}/{self.total}", "progress.download")]
        if self._even:
            speed = "-" if rate is None else _rate(rate, f" {self.unit}")
            shown.append((speed, "progress.data.speed"))
        shown.append((_clock(int(self.elapsed)), "progress.elapsed"))
        if self._even:
            shown.append((_clock(left), "progress.remaining"))
        return shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a line: the note gives way first, then the bar, then the label."""
        facts = Text(" ").join(Text(text, style) for text, style in self.facts())
        label, note = Text(self.label), Text(self.note)
        facts.truncate(options.max_width)
        room = options.max_width - facts.cell_len - 1
        if room > 1:
            label.truncate(room, overflow="ellipsis")
        else:
            label = Text()
        room -= label.cell_len + 1
        if (most := room - _NARROW_BAR - 1) < min(note.cell_len, _NARROW_NOTE):
            note = Text()
        if note:
            note.truncate(most, overflow="ellipsis")
            room -= note.cell_len + 1
        shown: list[Text | ProgressBar] = [text for text in (label, facts, note) if text]
        if room > 0:
            shown.insert(shown.index(facts), ProgressBar(self.total, self.done, room))
        for place, each in enumerate(shown):
            if place:
                yield Segment(" ")
            if isinstance(each, Text):
                yield from each.render(console)
                continue
            parts = list(console.render(each, options))
            yield from parts  # without colours they end where the work does
            yield Segment(" " * (room - Segment.get_line_length(parts)))


class _Line(ProgressColumn):
    def __init__(self, of: Bar) -> None:
        super().__init__()
        self._bar = of

    def render(self, task: Task) -> Bar:
        return self._bar


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, seconds = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _rate(per_second: float, unit: str = "") -> str:
    if 0 < per_second < 1:
        return f"{_rounded(1 / per_second)} s each"
    return f"{_rounded(per_second)}{unit}/s"


def _rounded(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:,.0f}"


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0, *, even: bool = True) -> Iterator[Bar]:
    """Show progress while the body runs, whose work begins with it.

    On a terminal this is a bar with rate and remaining time; elsewhere (a log file) a line after
    ten seconds and then every half minute.

    `unit` is a plural; `done`: units done by an earlier run; `even`: False if units are of unlike
    length, which have no rate.

    Yields:
        Callback for the number of units just done and, optionally, a note.
    """
    drawn = log.isEnabledFor(logging.INFO) if bars is None else bars
    if not (drawn and sys.stderr.isatty()):
        yield _Logged(label, total, unit, done, even)
        return
    counted, console = Bar(label, total, unit, done, even), Console(stderr=True)
    with Progress(_Line(counted), console=console, expand=True, redirect_stdout=False) as progress:
        progress.add_task(label, total=total)
        yield counted


class _Logged(Bar):
    _next = _FIRST_LOG_SECONDS

    def __call__(self, count: int, note: str = "", /) -> None:
        super().__call__(count, note)
        if count and self.elapsed >= self._next:
            self._next = self.elapsed + _LOG_SECONDS
            log.info(", ".join(self._words()))

    def _words(self) -> Iterator[str]:
        yield f"{self.label}: {self.done} of {self.total} {self.unit}"
        rate, left = self.rate(), self.seconds_left()
        if rate is not None and left is not None:
            yield _rate(rate)
            yield f"{left:.0f} s left"
        if self.note:
            yield self.note
