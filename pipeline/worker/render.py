"""The first stage: windows of views, read, decoded and rendered ahead of the teacher.

A window (1,024 rows of the sample table, the unit of mixup) is rendered in all views of its group
from one decode per image, by a thread pool, into one of two slabs: while the teacher is asked about
one, the other is filled, across the borders of groups and blocks. Slabs are page-locked where there
is a GPU, and used again: new memory for every window would cost more than many a decode.

Shapes: W rows of a window, G views of a group, S pixels a side.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.render import view as render
from cache_tools.store import view_params
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.verify import verify
from cache_tools.views import draw
from pipeline.worker.groups import Group
from pipeline.worker.meter import Meter
from pipeline.worker.window import Slab, Window

SLABS = 2
"""Windows in memory: one that the teacher is asked about, one that is being rendered."""
_TASK = 8
"""Images that a thread renders before it looks for more work."""


class Renderer:
    """Renders windows with its own threads."""

    def __init__(
        self, store: Cache, images: ImageDataset, threads: int, meter: Meter, pinned: bool
    ) -> None:
        """A renderer of `images`, which are in the order of the store's sample table."""
        self._store, self._images, self._meter = store, images, meter
        self._seen = store.spec.views.for_teacher()
        self._renderer = ViewRenderer(images, self._seen, store.table)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._free: queue.SimpleQueue[Slab] = queue.SimpleQueue()
        for _ in range(SLABS):
            self._free.put(Slab(pinned))
        self._suspects: set[int] = set()

    @contextmanager
    def stream(self, groups: Iterable[Group]) -> Iterator["Stream"]:
        """Windows of groups, in order; what is being rendered is given up when the body ends."""
        stream = Stream(self, groups)
        try:
            yield stream
        finally:
            stream.close()

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def size(self) -> int:
        """Pixels a side of the views."""
        return self._seen.size

    def slab(self) -> Slab:
        """A free slab; waits for one."""
        return self._free.get()

    def put_back(self, slab: Slab) -> None:
        """A slab that nobody needs any more."""
        self._free.put(slab)

    def release(self, window: Window) -> None:
        """Say that the pixels of a window are not needed any more."""
        if window.slab is not None:
            self.put_back(window.slab)
            window.slab = None

    def windows(self, block: int) -> list[range]:
        """The windows of a block."""
        rows, step = self._store.spec.rows(block), self._store.spec.window
        return [rows[i : i + step] for i in range(0, len(rows), step)]

    def look(self, block: int) -> Exception | None:
        """Why an image of this block that failed before fails again, if it does.

        The teacher need not be asked about all windows before it, only to be stopped there.
        """
        rows = self._store.spec.rows(block)
        for number in sorted(self._suspects.intersection(rows)):
            try:
                self._renderer.decode(number)
            except Exception as error:
                return error
            self._suspects.discard(number)
        return None

    def begin(self, window: Window, given_up: threading.Event) -> None:
        """Hand the images of a window to the threads."""
        row_W = np.arange(window.rows.start, window.rows.stop)
        params = [
            view_params.parameters(self._store, view, row_W, spec=self._seen)
            for view in window.group.views
        ]
        tasks = [
            range(i, min(i + _TASK, len(window.rows))) for i in range(0, len(window.rows), _TASK)
        ]
        left, lock = len(tasks), threading.Lock()
        probed = set(probe_numbers(self._store.spec.rows(window.group.block)))

        def task(positions: range) -> None:
            nonlocal left
            try:
                with self._meter.busy("render"):
                    for position in positions:
                        if given_up.is_set() or window.error is not None:
                            return
                        self._render(window, position, params)
                        if window.rows[position] in probed:
                            self._probe(window, position)
            except Exception as error:
                window.error = window.error or error
            finally:
                with lock:
                    left -= 1
                    if not left:
                        window.ready.set()

        for positions in tasks:
            self._pool.submit(task, positions)

    def _render(self, window: Window, position: int, params: list[draw.ViewParams]) -> None:
        """One image in all views of the group, decoded once."""
        number = window.rows[position]
        try:
            wanted = [(v, position, window.pixels[g, position]) for g, v in enumerate(params)]
            self._renderer.render(number, wanted)
        except Exception as error:
            error.add_note(f"while rendering {self._store.table.keys[number]!r}")
            self._suspects.add(number)
            raise

    def _probe(self, window: Window, position: int) -> None:
        """Fingerprints of a row as students see it, whatever size the teacher saw it at."""
        row = window.rows[position]
        for g, view in enumerate(window.group.views):
            window.probes[view, row] = (
                render.fingerprint(window.pixels[g, position])
                if self._seen is self._store.spec.views
                else verify.probe(self._store, self._images, row, view)
            )


class Stream:
    """Windows on their way from one thread to another; to be iterated over once."""

    def __init__(self, renderer: Renderer, groups: Iterable[Group]) -> None:
        """Start to render the windows of groups, which are asked for as they are needed."""
        self._renderer, self._groups = renderer, iter(groups)
        self._given_up, self._idle = threading.Event(), threading.Event()
        self._begun: queue.SimpleQueue[Window | BaseException | None] = queue.SimpleQueue()
        self._broken: set[Group] = set()
        self._in_use: Window | None = None
        self._thread = threading.Thread(target=self._run, name="windows", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Window]:
        """Windows in order, each when it is rendered; its pixels hold until the next one."""
        while (window := self._begun.get()) is not None:
            if isinstance(window, BaseException):
                raise window
            window.ready.wait()
            if window.error is not None:
                self._broken.add(window.group)
            self._in_use = window
            yield window
            self._renderer.release(window)

    def close(self) -> None:
        """Give up what is being rendered and take its slabs back."""
        self._given_up.set()
        if self._in_use is not None:
            self._renderer.release(self._in_use)
        while self._thread.is_alive() or not self._begun.empty():
            try:
                window = self._begun.get(timeout=0.05)
            except queue.Empty:
                if not self._idle.is_set():
                    continue
                self._thread.join(timeout=1.0)  # it waits for a group and gives up when it has one
                return
            if isinstance(window, Window):
                window.ready.wait()
                self._renderer.release(window)

    def _run(self) -> None:
        try:
            while (group := self._next()) is not None and not self._given_up.is_set():
                self._render(group)
        except BaseException as error:
            self._begun.put(error)
        finally:
            self._begun.put(None)

    def _next(self) -> Group | None:
        self._idle.set()
        try:
            return next(self._groups, None)
        finally:
            self._idle.clear()

    def _render(self, group: Group) -> None:
        windows, error = self._renderer.windows(group.block), self._renderer.look(group.block)
        if error is not None:
            nothing = Window(group, windows[0], np.empty(0, np.uint8), True, error=error)
            nothing.ready.set()
            self._begun.put(nothing)
            return
        for rows in windows:
            slab = self._renderer.slab()
            if self._given_up.is_set() or group in self._broken:
                self._renderer.put_back(slab)
                return
            size = self._renderer.size
            pixels = slab.room((len(group.views), len(rows), size, size, 3))
            window = Window(group, rows, pixels, rows is windows[-1], slab)
            self._begun.put(window)
            self._renderer.begin(window, self._given_up)
