"""The FFCV renderer: pixels of a batch from FFCV's compiled pipeline over a `.beton`.

The same pixels as `train.data.native_renderer` makes, bit for bit, behind the same interface;
FFCV reads the container by memory map and renders a batch in compiled threads. Its epoch iterator
keeps the metadata it hands to the pipeline; these are replaced by `ffcv_kernels.Tables`,
which makes the parameters of an epoch arguments of code that is compiled once.

FFCV is not maintained and has its traps. Closed here: decode errors and boxes outside of their
picture (a status per view, and `render` makes what is not done); bytes that changed (digests);
batches that are overwritten (copied at once); an exception in its thread (handed on, where FFCV
waits for ever); thread counts of torch and numba that it sets for everyone (kept); more workers
than cores (clamped); numba's unsafe threading layer (refused); scratch memory of the largest
picture times the batch (none); random draws that ignore seeds (none is made); libraries whose
pixels differ (a few views are compared before the first epoch). Its writer is not used at all
(`cache_tools.data.beton`).

Shapes: N samples, B views of a batch, U those and their partners, each once, S pixels a side.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from itertools import groupby
from queue import Empty, Full
from typing import Any

import numba
import numpy as np
import torch

from cache_tools.data.beton.reader import Beton
from cache_tools.data.beton.records import Records
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheIncomplete, CacheMismatch
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, U1
from cache_tools.render import kernels
from cache_tools.runtime import threads
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.views import draw
from train.data.loader import RenderFn
from train.data.prefetch import View
from train.data.schedule import Schedule
from train.distributed import World

# "workqueue" aborts when two loaders run at once.
setattr(numba.config, "THREADING_LAYER", "threadsafe")  # noqa: B010 - numba makes it at run time


@contextmanager
def _untouched() -> Iterator[None]:
    """Keep the thread counts that FFCV sets for the whole process, and silence what it warns of."""
    of_torch, of_numba = torch.get_num_threads(), numba.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(of_torch)
        numba.set_num_threads(of_numba)


with _untouched():
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.reader import Reader

    from train.data import ffcv_kernels
    from train.data.ffcv_kernels import Tables

_BATCHES_AHEAD = 2
_LOOK_SECONDS = 0.5
_COMPARED = 16
"""Most views that are compared with those of the native renderer, once for each loader."""


class ViewDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """FFCV's step from stored bytes to views; its "sample numbers" are rows of views."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        """[S, S, 3] uint8 per view."""
        shape, kind = (self._side, self._side, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=kind)
        return state, AllocationQuery(shape, kind)

    def generate_code(self) -> Callable[..., Any]:
        """Return the code to compile: the first view of each picture makes all of that picture."""
        render_all, each = ffcv_kernels.render_all, Compiler.get_iterator()

        def decode(view_B: I8, out: U1, tables: Tables, file: U1) -> U1:
            rows = len(tables.ptr_N)
            for i in each(len(view_B)):
                row = view_B[i] % rows
                if i == 0 or view_B[i - 1] % rows != row:
                    end = i + 1
                    while end < len(view_B) and view_B[end] % rows == row:
                        end += 1
                    begin = tables.ptr_N[row]
                    data = file[begin : begin + tables.size_N[row]]
                    render_all(data, row, view_B[i:end], tables, out[i:end])
            return out[: len(view_B)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class _Mapped:
    """The container by memory map, the kernel's page cache being the cache.

    FFCV's own declares it by making numba's type of all byte arrays read-only, in place: functions
    compiled before, and all kernels of ours, are not found any more.
    """

    def __init__(self, path: str) -> None:
        self.state = np.memmap(path, np.uint8, mode="r")

    def schedule_epoch(self, batches: object) -> "_Mapped":
        """Nothing is to be prepared."""
        return self

    def start_batch(self, step: int) -> None:
        """Nothing is to be read in advance."""

    def __enter__(self) -> None:
        """Nothing is to be opened."""

    def __exit__(self, *error: object) -> None:
        """Nothing is to be closed before the map itself goes."""


@cache
def _pipeline(side: int, num_workers: int) -> tuple[Graph, Any]:
    """FFCV's graph of operations and its code, which are those of any container."""
    spec = {"image": PipelineSpec("image", None, [ViewDecoder(side)])}
    graph = Graph(spec, {"image": RGBImageField()}, {"image": 0}, {"f0": None}, None)
    return graph, graph.codegen_all(graph.collect_requirements()[1])


class FfcvLoader:
    """Loader as FFCV's epoch iterator requires it: container, compiled pipeline, sizes."""

    def __init__(self, images: Beton, side: int, capacity: int, num_threads: int) -> None:
        """Load views of `side` pixels, at most `capacity` at once."""
        self.batch_size, self.batches_ahead = capacity, _BATCHES_AHEAD
        self.num_workers = max(1, min(num_threads, threads.cpu_count()))
        self.memory_manager = _Mapped(str(images.path))
        with _untouched():
            Compiler.set_num_threads(self.num_workers)
            self.reader = Reader(str(images.path))
            self.graph, self.code = _pipeline(side, self.num_workers)


class FfcvEpoch(EpochIterator):  # type: ignore[misc]
    """Thread that runs the pipeline ahead; its errors are raised where the next batch is taken."""

    def __init__(self, loader: FfcvLoader, view_numbers: Iterator[I8], tables: Tables) -> None:
        self._view_numbers, self._tables = view_numbers, tables
        with _untouched():
            super().__init__(loader, [])

    def start(self) -> None:
        """Begin; FFCV calls this at the end of its constructor."""
        self.metadata = {"f0": self._tables}
        super().start()

    def run(self) -> None:
        """Make batches until there are no more or the epoch is closed."""
        try:
            numba.set_num_threads(self.loader.num_workers)
            slots = self.loader.batches_ahead + 2
            for step, view_B in enumerate(self._view_numbers):
                if len(view_B) > self.loader.batch_size:  # would be written past the end
                    raise ValueError(f"{len(view_B)} views, room for {self.loader.batch_size}")
                if not self._give((view_B, *self.run_pipeline(step, view_B, step % slots, None))):
                    return
            self._give(StopIteration())
        except BaseException as error:  # any error is raised again in the reader
            self._give(error)

    def _give(self, item: object) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=_LOOK_SECONDS)
                return True
            except Full:
                pass
        return False

    def __next__(self) -> tuple[I8, U1]:
        """Rows of the views of one batch, and their pixels, which the next but one overwrites."""
        while True:
            try:
                item = self.output_queue.get(timeout=_LOOK_SECONDS)
                break
            except Empty:
                if not self.is_alive() and self.output_queue.empty():
                    raise RuntimeError("FFCV's thread ended without a word") from None
        if isinstance(item, BaseException):
            raise item
        made: tuple[I8, U1] = item
        return made

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self.terminate_event.set()
        if self.is_alive():
            self.join()
        super().close()
        self.closed = True


class FfcvRenderer:
    """Views of a `.beton`, rendered by FFCV; what it leaves out, `ViewRenderer` makes."""

    workers = 1
    """FFCV gives batches in order."""
    takes_shares = False
    """Its tables are of all samples."""

    def __init__(
        self, cache: Cache, images: Beton, num_threads: int, schedule: Schedule, world: World
    ) -> None:
        """Compile the pipeline, and compare a few views with the native renderer's.

        `images` are in the order of the sample table; 0 threads: one per core. `schedule` gives the
        size of buffers and the samples that are shown.

        Raises:
            CacheMismatch: FFCV's libraries make other pixels.
        """
        self.images = images
        """The container."""
        self._cache = cache
        self._threads = num_threads or threads.cpu_count()
        self._views = ViewRenderer(
            images, schedule.views, cache.table, stored_pixels=True, decoded_before=True
        )
        side, span = schedule.views.size, max(map(len, schedule.spans))
        capacity = span * schedule.max_pictures(world)
        self._loader = FfcvLoader(images, side, capacity, self._threads)
        self._check_libraries(schedule, capacity)

    @contextmanager
    def epoch(self, loaded: list[View], requests: Iterator[I8]) -> Iterator[RenderFn]:
        """Start FFCV's thread for one epoch; see `loader.Renderer`."""
        tables = self._tables(loaded)
        rows = len(self._cache.table)
        checkers = ThreadPoolExecutor(self._threads, thread_name_prefix="check")

        def view_numbers() -> Iterator[I8]:
            for wanted_U2 in requests:  # no byte is decoded before its digest is compared
                for _ in checkers.map(self.images.check, self.images.unchecked(wanted_U2[:, 0])):
                    pass
                yield wanted_U2 @ np.array([1, rows])

        epoch = FfcvEpoch(self._loader, view_numbers(), tables)

        def render(wanted_U2: I8, out: list[U1], _: I8) -> None:
            view_U, rendered = next(epoch)
            for pixels, made in zip(out, rendered, strict=True):  # which are overwritten soon
                pixels[:] = made
            left = np.flatnonzero(tables.status_V[view_U] != ffcv_kernels.DONE).tolist()
            for row, group in groupby(left, lambda i: int(wanted_U2[i, 0])):
                views = [(loaded[wanted_U2[i, 1]].params, row, out[i]) for i in group]
                self._views.render(row, views)

        try:
            yield render
        finally:
            epoch.close()
            checkers.shutdown(cancel_futures=True)

    def _tables(self, loaded: list[View]) -> Tables:
        """Parameters of an epoch's views as the compiled code takes them."""
        params = loaded[0].params
        if len(loaded) > 1:
            params = field_arrays.concatenate([view.params for view in loaded])
        return self._tables_of(params, self.images.rows_N)

    def _tables_of(self, params: draw.ViewParams, rows: Records) -> Tables:
        """Return parameters of views of some samples, whose rows of the container these are."""
        spec = self._cache.spec.views
        arguments: dict[str, Any] = {
            f"{name}_N": np.ascontiguousarray(rows[name])
            for name in ("ptr", "size", "mode", "height", "width")
        }
        for name in (f.name for f in fields(draw.ViewParams)):
            column = np.ascontiguousarray(getattr(params, name))
            if column.dtype == bool:
                column = column.view(np.uint8)
            arguments[name.replace("_B", "_V")] = column
        return Tables(
            **arguments,
            operation_C=kernels.addresses(params.codes_BL),
            fill=np.array(spec.fill, np.uint8),
            scaled=int(spec.scaled_decode),
            status_V=np.zeros(len(params), np.uint8),
        )

    def _check_libraries(self, schedule: Schedule, capacity: int) -> None:
        """Refuse pixels of FFCV's TurboJPEG and OpenCV that differ from those of the probe views.

        A few views, spread evenly, are compared with the renderer that made the probe views.
        """
        row_P = np.flatnonzero(schedule.present_N)
        count = min(_COMPARED, capacity, len(row_P))
        row_P = row_P[np.linspace(0, len(row_P) - 1, count).astype(np.int64)]
        try:
            params = view_params.parameters(self._cache, 0, row_P, spec=schedule.views)
        except CacheIncomplete:  # imported parameters, which are checked when they are there
            return
        for row in row_P.tolist():
            self.images.check(row)
        tables = self._tables_of(params, self.images.rows_N[row_P])
        epoch = FfcvEpoch(self._loader, iter([np.arange(count)]), tables)
        try:
            _, made = next(epoch)
            made = made.copy()
        finally:
            epoch.close()
        ours = ViewRenderer(self.images, schedule.views, self._cache.table, stored_pixels=True)
        for at in np.flatnonzero(tables.status_V == ffcv_kernels.DONE).tolist():
            expected = np.empty_like(made[at])
            ours.render(int(row_P[at]), [(params, at, expected)])
            if (made[at] != expected).any():
                raise CacheMismatch(
                    f"loader=ffcv makes other pixels of view 0 of "
                    f"{self._cache.table.keys[row_P[at]]!r} than the teacher's: of "
                    f"{ffcv_kernels.LIBRARY}, which decodes, or the OpenCV that FFCV was built "
                    "with. Pass loader=native, or install other versions of them and run make ffcv."
                )
