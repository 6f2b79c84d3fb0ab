"""First stage: windows of views, read, decoded and rendered ahead of the teacher.

A window (1,024 rows of the sample table, the unit of mixup) is rendered in all views of its group
from one decode per image, by a thread pool, into one of two buffers: while the teacher predicts
one, the other is filled, across the borders of groups and blocks. Buffers are page-locked where
there is a GPU, and reused: new memory for every window would cost more than many a decode.

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
from cache_tools.verify import probes
from cache_tools.views import draw
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.meter import Meter
from pipeline.worker.window import PinnedBuffer, Window

BUFFERS = 2
"""Windows in memory: one in the teacher's hands, one being rendered."""
_TASK = 8
"""Images per task of the thread pool."""


class Renderer:
    """Thread pool that renders windows."""

    def __init__(
        self, store: Cache, images: ImageDataset, threads: int, meter: Meter, pinned: bool
    ) -> None:
        """Start the threads; `images` are in the order of the cache's sample table."""
        self._store, self._images, self._meter = store, images, meter
        self._seen = store.spec.views.for_teacher()
        self._renderer = ViewRenderer(images, self._seen, store.table)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self.free: queue.SimpleQueue[PinnedBuffer] = queue.SimpleQueue()
        """Buffers that are not in use."""
        for _ in range(BUFFERS):
            self.free.put(PinnedBuffer(pinned))
        self._suspects: set[int] = set()

    @contextmanager
    def stream(self, groups: Iterable[DecodeGroup]) -> Iterator["WindowStream"]:
        """Windows of groups, in order; unfinished ones are abandoned when the body ends."""
        stream = WindowStream(self, groups)
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

    def release(self, window: Window) -> None:
        """Return the buffer of a window, whose pixels become invalid."""
        if window.buffer is not None:
            self.free.put(window.buffer)
            window.buffer = None

    def windows(self, block: int) -> list[range]:
        """Divide a block into windows."""
        rows, step = self._store.spec.rows(block), self._store.spec.window
        return [rows[i : i + step] for i in range(0, len(rows), step)]

    def recheck(self, block: int) -> Exception | None:
        """Decode images of this block that failed before; the error if one fails again.

        Spares the teacher the windows before such an image.
        """
        rows = self._store.spec.rows(block)
        for number in sorted(self._suspects.intersection(rows)):
            try:
                self._renderer.decode(number)
            except Exception as error:
                return error
            self._suspects.discard(number)
        return None

    def begin(self, window: Window, abandoned: threading.Event) -> None:
        """Queue the images of a window for the threads."""
        row_W = np.arange(window.rows.start, window.rows.stop)
        params = [
            view_params.parameters(self._store, view, row_W, spec=self._seen)
            for view in window.group.views
        ]
        count = len(window.rows)
        tasks = [range(i, min(i + _TASK, count)) for i in range(0, count, _TASK)]
        left, lock = len(tasks), threading.Lock()
        probed = set(probe_numbers(self._store.spec.rows(window.group.block)))

        def task(positions: range) -> None:
            nonlocal left
            try:
                with self._meter.busy("render"):
                    for position in positions:
                        if abandoned.is_set() or window.error is not None:
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
        """Render one image in all views of the group, decoded once."""
        number = window.rows[position]
        try:
            wanted = [(v, position, window.pixels[g, position]) for g, v in enumerate(params)]
            self._renderer.render(number, wanted)
        except Exception as error:
            error.add_note(f"while rendering {self._store.table.keys[number]!r}")
            self._suspects.add(number)
            raise

    def _probe(self, window: Window, position: int) -> None:
        """Add fingerprints of a row at the students' size, whatever the teacher's."""
        row = window.rows[position]
        for g, view in enumerate(window.group.views):
            window.probes[view, row] = (
                render.fingerprint(window.pixels[g, position])
                if self._seen is self._store.spec.views
                else probes.probe(self._store, self._images, row, view)
            )


class WindowStream:
    """Rendered windows between two threads; an iterable for one use."""

    def __init__(self, renderer: Renderer, groups: Iterable[DecodeGroup]) -> None:
        """Start rendering; `groups` is advanced as windows are needed."""
        self._renderer, self._groups = renderer, iter(groups)
        self._abandoned, self._idle = threading.Event(), threading.Event()
        self._begun: queue.SimpleQueue[Window | BaseException | None] = queue.SimpleQueue()
        self._broken: set[DecodeGroup] = set()
        self._in_use: Window | None = None
        self._thread = threading.Thread(target=self._run, name="windows", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Window]:
        """Windows in order, each when it is rendered; its pixels are valid until the next one."""
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
        """Abandon unfinished windows and return their buffers."""
        self._abandoned.set()
        if self._in_use is not None:
            self._renderer.release(self._in_use)
        while self._thread.is_alive() or not self._begun.empty():
            try:
                window = self._begun.get(timeout=0.05)
            except queue.Empty:
                if not self._idle.is_set():
                    continue
                self._thread.join(timeout=1.0)  # it waits for a group and ends when it gets one
                return
            if isinstance(window, Window):
                window.ready.wait()
                self._renderer.release(window)

    def _run(self) -> None:
        try:
            while (group := self._next()) is not None and not self._abandoned.is_set():
                self._render(group)
        except BaseException as error:
            self._begun.put(error)
        finally:
            self._begun.put(None)

    def _next(self) -> DecodeGroup | None:
        self._idle.set()
        try:
            return next(self._groups, None)
        finally:
            self._idle.clear()

    def _render(self, group: DecodeGroup) -> None:
        windows, error = self._renderer.windows(group.block), self._renderer.recheck(group.block)
        if error is not None:
            broken = Window(group, windows[0], np.empty(0, np.uint8), True, error=error)
            broken.ready.set()
            self._begun.put(broken)
            return
        for rows in windows:
            buffer = self._renderer.free.get()
            if self._abandoned.is_set() or group in self._broken:
                self._renderer.free.put(buffer)
                return
            size = self._renderer.size
            pixels = buffer.array((len(group.views), len(rows), size, size, 3))
            window = Window(group, rows, pixels, rows is windows[-1], buffer)
            self._begun.put(window)
            self._renderer.begin(window, self._abandoned)
