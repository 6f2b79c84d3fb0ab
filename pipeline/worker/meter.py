"""Share of time in which each stage is busy: the bottleneck of a run.

Stages run at the same time: their shares do not add up to one. Those of the teacher do: it works,
or it waits for pixels, and the rest is overhead. On a GPU both are measured there, between events
on its stream; the calling thread runs ahead of it.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cache_tools.runtime.text import counted

Stage = Literal["render", "wait", "forward", "commit"]
NAMES = {
    "render": "render_busy",
    "wait": "teacher_wait",
    "forward": "teacher_busy",
    "commit": "commit_busy",
}
"""Stages, and the names of their shares in commit records (FORMAT.md, section 5)."""
RATE = "views_per_second"
TIMINGS = (RATE, *NAMES.values())
"""Statistics of a commit record about the run, not about the targets."""
_NOTE_SECONDS = 5.0


class Meter:
    """Seconds that each stage was busy, from any thread."""

    def __init__(self, render_threads: int) -> None:
        """Start at zero; rendering has `render_threads` threads, encoding and committing two."""
        self._width = {"render": render_threads, "commit": 2}
        self._lock = threading.Lock()
        self._busy = dict.fromkeys(NAMES, 0.0)
        self._under_way: Counter[tuple[Stage, float]] = Counter()
        self._views = 0
        self.parts = 0
        """Parts committed."""
        self.start()

    def start(self) -> None:
        """Restart all intervals; earlier time counts in none."""
        with self._lock:
            self._begin = self._last = self._noted = self._now()
            self._note = ""

    @contextmanager
    def busy(self, stage: Stage) -> Iterator[None]:
        """Count the wall time of the body.

        An interval that ends meanwhile includes the time so far, so that no share exceeds one: on a
        machine busy with something else, stages end long after the interval in which they began.
        """
        with self._lock:
            now = stage, time.perf_counter()
            self._under_way[now] += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[stage] += time.perf_counter() - now[1]
                self._under_way -= Counter([now])

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds."""
        with self._lock:
            self._busy[stage] += seconds

    def count(self, views: int) -> None:
        """Count views that the teacher has labeled."""
        with self._lock:
            self._views += views

    def since_last(self) -> dict[str, float]:
        """Rate and shares since the last call, by their names in commit records."""
        with self._lock:
            before, self._last = self._last, self._now()
            return self._between(before, self._last)

    def rate(self) -> float:
        """Return views per second since the start."""
        with self._lock:
            return self._between(self._begin, self._now())[RATE]

    def note(self) -> str:
        """Describe the last seconds in a few words, for the progress bar."""
        with self._lock:
            now = self._now()
            if not self._note or now[0] - self._noted[0] >= _NOTE_SECONDS:
                found, self._noted = self._between(self._noted, now), now
                waits, renders = found[NAMES["wait"]], found[NAMES["render"]]
                self._note = f"teacher waits {waits:.0%}, rendering {renders:.0%}"
            return f"{counted(self.parts, 'part')} done, {self._note}"

    def _now(self) -> tuple[float, int, dict[str, float]]:
        now, busy = time.perf_counter(), dict(self._busy)
        for (stage, begin), count in self._under_way.items():
            busy[stage] += count * (now - begin)
        return now, self._views, busy

    def _between(
        self, before: tuple[float, int, dict[str, float]], now: tuple[float, int, dict[str, float]]
    ) -> dict[str, float]:
        seconds = max(now[0] - before[0], 1e-9)
        found = {RATE: round((now[1] - before[1]) / seconds, 3)}
        for stage, name in NAMES.items():
            busy = now[2][stage] - before[2][stage]
            found[name] = round(busy / seconds / self._width.get(stage, 1), 4)
        return found
