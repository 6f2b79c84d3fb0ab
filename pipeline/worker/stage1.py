"""The work of stage 1: parts, from images to commit records, with a teacher that never waits.

Four stages run at the same time, each with its own threads, handing on what is bounded in memory:

    read, decode once, render G views   rendering.py  a pool of threads, a window ahead
    upload, forward, choose classes     ask.py        the thread that calls, and the device
    encode, gather statistics           collect.py    one thread
    make chunks, commit                 collect.py    one thread

All of them go on across the borders of windows, groups and blocks. What is made of a part depends
on nothing but the size of batches: not on threads, groups, or what was done before it.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from cache_tools.data.images import ImageDataset
from cache_tools.runtime.signals import StopRequest
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline.teacher.forward import Forward
from pipeline.worker import failures as outcome
from pipeline.worker.failures import Failure
from pipeline.worker.groups import Group, groups
from pipeline.worker.meter import Meter
from pipeline.worker.predict import Asker, Said
from pipeline.worker.render import Renderer
from pipeline.worker.window import Window
from pipeline.worker.write import Collector

log = logging.getLogger("kdcache")
TRIES = 3
"""How often a part is tried whose images cannot be read."""
PAUSE_SECONDS = 5.0
"""Before the second try; the third one waits twice as long."""
GRACE_SECONDS = 20.0
"""A group that can be finished in this time is finished when a signal comes: Slurm kills after
30."""


class Worker:
    """Makes parts of one cache with one teacher."""

    def __init__(
        self, store: Cache, images: ImageDataset, forward: Forward, batch_size: int, threads: int
    ) -> None:
        """A worker on `images` in the order of the store's sample table."""
        self.store = store
        self.meter = Meter(threads)
        pinned = forward.device.type == "cuda"
        self._times_itself = pinned
        self._renderer = Renderer(store, images, threads, self.meter, pinned)
        self._asker = Asker(store, forward, batch_size, self.meter)
        self._collector = Collector(store, forward, self.meter)
        self._largest = 1

    def make(
        self,
        wanted: Iterable[Group],
        done: Callable[[int], None],
        stop: StopRequest | None = None,
    ) -> list[Failure]:
        """Make and commit parts.

        Args:
            wanted: Which ones, in this order; asked for one ahead of the teacher.
            done: Called with the number of views finished, negative when they are lost again.
            stop: Asks to stop.

        Returns:
            Parts that could not be made, although tried again where that may help.

        Raises:
            KdcacheError: What concerns more than a part: a full disk, a teacher that says NaN only.
            KeyboardInterrupt: `stop` asked to; what was whole is committed.
        """
        stop = stop or StopRequest()
        failures: list[Failure] = []
        for attempt in range(1, TRIES + 1):
            failed = self._try(wanted, done, stop)
            again = [p for p, e in failed.items() if outcome.is_worth_another_try(e)]
            again = again if attempt < TRIES else []
            failures += [outcome.failure(p, e) for p, e in failed.items() if p not in again]
            if not again:
                break
            first = failed[again[0]]
            log.warning(
                "%d parts failed and are tried again (try %d of %d): %s",
                len(again), attempt + 1, TRIES, first,
            )  # fmt: skip
            wanted = groups(again, self._largest)
            self._pause(PAUSE_SECONDS * attempt, stop)
        return failures

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped."""
        self._renderer.close()
        self._collector.close()

    def _try(
        self, wanted: Iterable[Group], done: Callable[[int], None], stop: StopRequest
    ) -> dict[Part, Exception]:
        """Make parts; those that failed, and why."""
        self.meter.start()
        self._collector.begin(done)
        finished = False
        try:
            with self._renderer.stream(self._missing(wanted)) as stream:
                finished = self._ask(stream, stop)
            self._collector.finish()
        finally:
            self._collector.drop()
        if not finished:
            raise KeyboardInterrupt
        return self._collector.failed

    def _missing(self, wanted: Iterable[Group]) -> Iterator[Group]:
        """Groups without the parts that another worker has committed meanwhile."""
        for group in wanted:
            self._largest = max(self._largest, len(group.views))
            lacking = [part for part in group.parts if self.store.check_part(part) is not None]
            if there := len(group.views) - len(lacking):
                self._collector.skip(there * len(self.store.spec.rows(group.block)))
            if lacking:
                yield Group(group.block, tuple(part.view for part in lacking))

    def _ask(self, windows: Iterable[Window], stop: StopRequest) -> bool:
        """The teacher's thread; whether it came to the end."""
        finishing = False
        for window in self._waited_for(windows):
            first = self.store.spec.rows(window.group.block).start
            if stop.requested and window.rows.start == first:
                return False
            for asked in self._batches(window):
                if stop.requested and not finishing:
                    finishing = self._is_soon_done(window, asked)
                    if not finishing:
                        return False
        return True

    def _waited_for(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The same windows; the time they are waited for is counted."""
        waiting = contextlib.nullcontext if self._times_itself else partial(self.meter.busy, "wait")
        there = iter(windows)
        while True:
            with waiting():
                window = next(there, None)
            if window is None:
                return
            yield window

    def _batches(self, window: Window) -> Iterator[int]:
        """Ask about a window; after every batch, how many of its views were asked about."""
        if window.error is not None and not outcome.is_of_a_part(window.error):
            raise window.error
        for place, part in enumerate(window.group.parts):
            if window.error is not None and part not in self._collector.failed:
                self._collector.fail(part, window.error)
            if part in self._collector.failed:
                continue
            for said in self._asker.ask(window, place):
                self._collector.take(said)
                if isinstance(said, Said):
                    yield len(window.rows) * place + said.rows.stop - window.rows.start
            self._collector.end(window, place)

    @staticmethod
    def _pause(seconds: float, stop: StopRequest) -> None:
        end = time.monotonic() + seconds
        while not stop.requested and time.monotonic() < end:
            time.sleep(0.05)

    def _is_soon_done(self, window: Window, asked: int) -> bool:
        """Whether the group of a window ends within the time of grace."""
        rows = self.store.spec.rows(window.group.block)
        left = (rows.stop - window.rows.start) * len(window.group.views) - asked
        rate = max(self.meter.rate(), 1e-9)
        soon = left <= rate * GRACE_SECONDS
        what = f"finished first, {left / rate:.0f} s" if soon else "dropped"
        log.info("asked to stop: the parts in hand are %s", what)
        return soon
