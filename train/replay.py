"""The native loader: the views the teacher saw, rendered again, with what it said of them.

An epoch's targets lie in RAM as they were stored (a few bytes per view), beside the parameters of
its views, both fetched one epoch ahead in the background; a batch's are decoded when it is made.
Pixels come from a thread pool, a few batches ahead. A batch is a function of (epoch, step) alone:
neither the number of threads nor an interruption changes a bit of it.

Shapes: B views of a batch, S pixels a side, N samples.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cache_tools import codec, decode, progress, render, samples, threads, verify, views
from cache_tools.codec import Stored, Targets
from cache_tools.errors import UsageError
from cache_tools.shards import Images
from cache_tools.store import Store
from train.schedule import Plan, Schedule
from train.world import ALONE, World

U1 = NDArray[np.uint8]
AHEAD = 3
"""Batches in the making while one is trained on."""
_MAX_PROBED_PARTS = 64


@dataclass(frozen=True)
class Batch:
    """One step's data on the host."""

    pixels: U1
    """[B, S, S, 3] RGB."""
    partner: U1 | None
    """Pixels of the mixup partners, or None when the cache has no mixup."""
    lam_B: NDArray[np.float32]
    """Share of the view's own sample in 1/65536."""
    cut_B4: NDArray[np.int32]
    """Cutmix boxes; height 0 where there is none."""
    targets: Targets
    """What the teacher said of the mixed views."""
    label_B: NDArray[np.int64]
    """Labels, NO_LABEL when the cache has none."""
    partner_label_B: NDArray[np.int64]
    """Labels of the partners."""


@dataclass(frozen=True)
class _View:
    """Everything about one view number of every sample, in RAM."""

    stored: Stored
    """[N, …] targets as they are stored."""
    params: views.Views
    """Parameters of the N views, from one vectorised draw."""


class Replay:
    """Batches of a schedule."""

    def __init__(
        self,
        store: Store,
        images: Images,
        schedule: Schedule,
        num_threads: int,
        world: World = ALONE,
    ) -> None:
        """A loader over `images` in the order of the store's sample table.

        Args:
            store: The cache.
            images: Its data set.
            schedule: Which views when.
            num_threads: Renderer threads; 0 = one per core.
            world: Of each batch this process gets its slice.

        Raises:
            UsageError: A batch cannot be shared evenly.
        """
        if schedule.batch_size % world.size:
            raise UsageError(
                f"batch_size={schedule.batch_size} cannot be shared by {world.size} processes. "
                "Pass a multiple of their number."
            )
        self._world = world
        self._store = store
        self._images = images
        self._schedule = schedule
        self._threads = num_threads or threads.available()
        self._views: dict[int, Future[_View]] = {}
        self._reuse = decode.Reuse()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on."""
        plan = self._schedule.plan(epoch)
        background = ThreadPoolExecutor(1, thread_name_prefix="views")
        batches = ThreadPoolExecutor(AHEAD, thread_name_prefix="batch")
        renderers = ThreadPoolExecutor(self._threads, thread_name_prefix="render")
        try:
            loaded = [future.result() for future in self._fetch(background, plan.views)]
            following = self._schedule.view_numbers(epoch + 1)
            self._fetch(background, following)
            self._forget({*plan.views, *following})
            queue: deque[Future[Batch]] = deque()
            for step in range(first_step, self._schedule.steps):
                queue.append(batches.submit(self._batch, plan, loaded, step, renderers))
                if len(queue) > AHEAD:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            batches.shutdown(cancel_futures=True)
            renderers.shutdown(cancel_futures=True)
            background.shutdown(wait=False)

    def _batch(
        self, plan: Plan, loaded: list[_View], step: int, renderers: ThreadPoolExecutor
    ) -> Batch:
        size = self._schedule.batch_size
        share = size // self._world.size
        begin = step * size + self._world.rank * share
        part = slice(begin, begin + share)
        row, slot, partner = plan.row_M[part], plan.slot_M[part], plan.partner_M[part]
        pixels, partner_pixels = self._pixels(loaded, row, slot, partner, renderers)
        label = self._store.table.label_N
        return Batch(
            pixels,
            partner_pixels,
            plan.lam_M[part].astype(np.float32),
            plan.cut_M4[part],
            self._targets(loaded, slot, row),
            label[row].astype(np.int64),
            label[partner].astype(np.int64),
        )

    def _targets(
        self, loaded: list[_View], slot_B: NDArray[np.int64], row_B: NDArray[np.int64]
    ) -> Targets:
        """What the teacher said of a batch's views."""
        spec = self._store.spec.targets
        if len(loaded) == 1:
            return codec.decode(loaded[0].stored, spec, row_B)
        groups = [np.flatnonzero(slot_B == slot) for slot in range(len(loaded))]
        parts = [
            codec.decode(v.stored, spec, row_B[g]) for v, g in zip(loaded, groups, strict=True)
        ]
        back = np.argsort(np.concatenate(groups))
        names = [f.name for f in fields(Targets)]
        return Targets(*(np.concatenate([getattr(p, n) for p in parts])[back] for n in names))

    def _pixels(
        self,
        loaded: list[_View],
        row: NDArray[np.int64],
        slot: NDArray[np.int64],
        partner: NDArray[np.int64],
        renderers: ThreadPoolExecutor,
    ) -> tuple[U1, U1 | None]:
        """Pixels of a batch and of its partners: one decode per picture, one render per view."""
        mixed = self._store.spec.views.mixes
        wanted = np.stack([slot, row], axis=1)
        if mixed:
            wanted = np.concatenate([wanted, np.stack([slot, partner], axis=1)])
        unique, where = np.unique(wanted[:, ::-1], axis=0, return_inverse=True)  # by row, then slot
        side = self._store.spec.views.size
        out = np.empty((len(unique), side, side, 3), dtype=np.uint8)
        params = [loaded[slot].params for slot in unique[:, 1]]
        rows, begins = np.unique(unique[:, 0], return_index=True)
        of_row = [slice(a, b) for a, b in pairwise([*begins.tolist(), len(unique)])]
        groups = ([*zip(params[s], out[s], strict=True)] for s in of_row)
        for _ in renderers.map(self._render, rows.tolist(), groups):
            pass
        where = where.reshape(-1)
        return out[where[: len(row)]], out[where[len(row) :]] if mixed else None

    def _render(self, row: int, wanted: list[tuple[views.Views, U1]]) -> None:
        table = self._store.table
        data = self._images.read(row)
        samples.check_digest(table, row, data)
        spec = self._store.spec.views
        of_row = [(params, row, out) for params, out in wanted]
        render.views_of(data, table.keys[row], spec, of_row, self._reuse)

    def _fetch(self, pool: ThreadPoolExecutor, numbers: tuple[int, ...]) -> list[Future[_View]]:
        """These views, loading them in the background when they are not there."""
        for number in numbers:
            if number not in self._views:
                self._views[number] = pool.submit(self._load, number)
        return [self._views[number] for number in numbers]

    def _forget(self, needed: set[int]) -> None:
        self._views = {n: future for n, future in self._views.items() if n in needed}

    def _load(self, number: int) -> _View:
        store = self._store
        table, spec = store.table, store.spec
        params = []
        for block in range(spec.num_blocks):
            rows = slice(spec.rows(block).start, spec.rows(block).stop)
            columns = table.id_N[rows], table.height_N[rows], table.width_N[rows]
            params.append(views.draw(spec.views, *columns, number))
        return _View(store.read_view(number), views.concatenate(params))


def check(store: Store, images: Images) -> None:
    """Refuse to train on a cache that is not whole, or on other pixels than the teacher's.

    Looks at every part's digests and renders the probe views of up to 64 parts, spread evenly.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the file or the sample.
    """
    parts = list(store.parts())
    with progress.bar("check the cache", len(parts), "parts") as advance:
        for _, fault in verify.faults(store):
            if fault is not None:
                raise fault
            advance(1)
    count = min(len(parts), _MAX_PROBED_PARTS)
    for i in range(count):
        verify.check_probes(store, images, parts[i * len(parts) // count])
