"""The native loader: the views the teacher saw, rendered again, with what it said of them.

An epoch's targets lie in RAM as they were stored (a few bytes per view), beside the parameters of
its views (`train.data.prefetch`); a batch's are decoded when it is made. Pixels come from a thread
pool, a few batches ahead, and are rendered where the batch has them. A batch is a function of
(epoch, step) alone: neither the number of threads nor an interruption changes a bit of it.

Shapes: B views of a batch, S pixels a side, N samples.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import Images
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.runtime import progress, threads
from cache_tools.store import view_params
from cache_tools.store.aligned import Members
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.targets.codec import DecodedTargets
from cache_tools.targets.mixture import Tail
from cache_tools.verify import verify
from cache_tools.views import draw
from train.data.buffer_pool import Memory
from train.data.prefetch import Epochs, View
from train.data.schedule import Plan, Schedule
from train.distributed import ALONE, World

log = logging.getLogger("kdcache")
U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]
AHEAD = 3
"""Batches in the making while one is trained on."""
Paint = Callable[[I8, list[U1]], None]
"""Makes views: their rows and slots [U, 2], ascending, and [S, S, 3] for the pixels of each."""
_PICTURES = 8
"""Pictures that a thread makes in a row: handing over each would cost a tenth of its time."""
_MAX_PROBED_PARTS = 64


@dataclass(frozen=True)
class Batch:
    """One step's data on the host."""

    pictures: U1
    """[U, S, S, 3] RGB: the batch's views, then those mixup partners that are not among them."""
    partner_at_B: I8 | None
    """Which of `pictures` the mixup partners are, or None when the cache has no mixup."""
    lam_B: NDArray[np.float32]
    """Share of the view's own sample in 1/65536."""
    cut_B4: NDArray[np.int32]
    """Cutmix boxes; height 0 where there is none."""
    targets: DecodedTargets
    """What the teacher said of the mixed views."""
    label_B: NDArray[np.int64]
    """Labels, NO_LABEL when the cache has none."""
    partner_label_B: NDArray[np.int64]
    """Labels of the partners."""
    outside_B: NDArray[np.float32] | None = None
    """As `MixParams.outside_B`."""

    def __len__(self) -> int:
        """Views of the batch."""
        return len(self.lam_B)

    @property
    def pixels(self) -> U1:
        """[B, S, S, 3] RGB of the batch's views."""
        return self.pictures[: len(self)]

    @property
    def partner(self) -> U1 | None:
        """[B, S, S, 3] RGB of the mixup partners, copied, or None when the cache has no mixup."""
        return None if self.partner_at_B is None else self.pictures[self.partner_at_B]


class Replay:
    """Batches of a schedule."""

    makers = AHEAD
    """How many batches are made at once."""
    ahead = AHEAD
    """How many batches are ready, or in the making, while one is trained on."""

    def __init__(
        self,
        store: Cache,
        images: Images,
        schedule: Schedule,
        num_threads: int,
        world: World = ALONE,
        members: Members | None = None,
        tail: Tail = "uniform",
        locked: bool = False,
        epochs: int | None = None,
    ) -> None:
        """A loader over `images` in the order of the store's sample table.

        Args:
            store: The cache.
            images: Its data set.
            schedule: Which views when.
            num_threads: Renderer threads; 0 = one per core.
            world: Of each batch this process gets its slice.
            members: Caches whose mixture is to be learned; None: the store alone.
            tail: What a mixture takes classes to be that one of its members did not keep.
            locked: Whether pixels lie in page-locked memory, for a GPU.
            epochs: How many there will be; None: nobody knows.

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
        self._members = members or Members((store,), (1.0,))
        several = len(self._members.stores) > 1
        self._mixture = self._members.mixture(tail) if several else None
        self._images = images
        self._schedule = schedule
        self._threads = num_threads or threads.cpu_count()
        self._epochs = Epochs(self._members, schedule, images, epochs)
        self._renderer = ViewRenderer(
            images, store.spec.views, store.table, stored_pixels=True, decoded_before=True
        )
        side = store.spec.views.size
        self._memory = Memory((self._most_pictures(), side, side, 3), locked)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on."""
        ready = self._epochs.get(epoch)
        plan, loaded = ready.plan, ready.loaded
        with self._painter(plan, loaded, first_step) as paint:
            yield from self._batches(plan, loaded, first_step, paint)

    def _batches(
        self, plan: Plan, loaded: list[View], first_step: int, paint: Paint
    ) -> Iterator[Batch]:
        """The batches in order, a few of them in the making."""
        makers = ThreadPoolExecutor(self.makers, thread_name_prefix="batch")
        queue: deque[Future[Batch]] = deque()
        try:
            for step in range(first_step, self._schedule.steps):
                queue.append(makers.submit(self._batch, plan, loaded, step, paint))
                if len(queue) > AHEAD:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            makers.shutdown(cancel_futures=True)

    @contextmanager
    def _painter(self, plan: Plan, loaded: list[View], first_step: int) -> Iterator[Paint]:
        """What makes pixels during one epoch."""
        renderers = ThreadPoolExecutor(self._threads, thread_name_prefix="render")
        try:
            yield lambda wanted, out: self._paint(loaded, wanted, out, renderers)
        finally:
            renderers.shutdown(cancel_futures=True)

    def _most_pictures(self) -> int:
        """The most pictures that a batch can have."""
        share = self._schedule.batch_size // self._world.size
        if not self._store.spec.views.mixes:
            return share
        if self._schedule.repeats > 1 or view_params.has_partner_params(self._store):
            return 2 * share
        return min(2 * share, share + 2)  # partners stand side by side, but for those at the ends

    def _share(self, step: int) -> slice:
        """Which views of the plan this process has in a step."""
        share = self._schedule.batch_size // self._world.size
        begin = step * self._schedule.batch_size + self._world.rank * share
        return slice(begin, begin + share)

    def _wanted(self, plan: Plan, step: int) -> tuple[I8, I8]:
        """Row and slot of a batch's views and their partners, each once and ascending; and where.

        Slots from `len(plan.views)` on are the other sides of these views.

        Returns:
            [U, 2]; and which of them each view is, then which of them each partner is.
        """
        part = self._share(step)
        row, slot = plan.row_M[part], plan.slot_M[part]
        wanted = np.stack([row, slot], axis=1)
        if view_params.has_partner_params(self._store):
            others = np.stack([row, slot + len(plan.views)], axis=1)
            wanted = np.concatenate([wanted, others])
        elif self._store.spec.views.mixes:
            wanted = np.concatenate([wanted, np.stack([plan.partner_M[part], slot], axis=1)])
        unique, where = np.unique(wanted, axis=0, return_inverse=True)
        return unique, where.reshape(-1)

    def _batch(self, plan: Plan, loaded: list[View], step: int, paint: Paint) -> Batch:
        part = self._share(step)
        row, slot, partner = plan.row_M[part], plan.slot_M[part], plan.partner_M[part]
        wanted, where = self._wanted(plan, step)
        own_B, partner_B = where[: len(row)], where[len(row) :]
        at_U = _places(own_B, len(wanted))
        pictures = self._memory.take()[: len(row) + int((at_U >= len(row)).sum())]
        paint(wanted, [pictures[at] for at in at_U.tolist()])
        for again in np.flatnonzero(at_U[own_B] != np.arange(len(row))).tolist():
            pictures[again] = pictures[at_U[own_B[again]]]
        label = self._store.table.label_N
        own, other = label[row].astype(np.int64), label[partner].astype(np.int64)
        return Batch(
            pictures,
            at_U[partner_B] if self._store.spec.views.mixes else None,
            plan.lam_M[part].astype(np.float32),
            plan.cut_M4[part],
            self._said(loaded, slot, row, np.stack([own, other], axis=1)),
            own,
            other,
            None if plan.outside_M is None else plan.outside_M[part].astype(np.float32),
        )

    def _said(self, loaded: list[View], slot_B: I8, row_B: I8, label_BP: I8) -> DecodedTargets:
        """What the teacher, or several together, said of a batch's views."""
        if self._mixture is None:
            return self._targets(loaded, slot_B, row_B)
        each = [self._targets(loaded, slot_B, row_B, i) for i in range(len(self._members.stores))]
        return self._mixture(each, label_BP[:, : self._members.num_labels])

    def _targets(
        self, loaded: list[View], slot_B: I8, row_B: I8, member: int = 0
    ) -> DecodedTargets:
        """What one teacher said of a batch's views."""
        spec = self._members.stores[member].spec.targets
        stored = [view.stored[member] for view in loaded]
        if len(loaded) == 1:
            return codec.decode(stored[0], spec, row_B)
        groups = [np.flatnonzero(slot_B == slot) for slot in range(len(loaded))]
        parts = [codec.decode(s, spec, row_B[g]) for s, g in zip(stored, groups, strict=True)]
        back = np.argsort(np.concatenate(groups))
        names = [f.name for f in fields(DecodedTargets)]
        return DecodedTargets(
            *(np.concatenate([getattr(p, n) for p in parts])[back] for n in names)
        )

    def _paint(
        self, loaded: list[View], wanted_U2: I8, out: list[U1], renderers: ThreadPoolExecutor
    ) -> None:
        """Make views: one decode per picture, one render per view."""
        of_picture: dict[int, list[tuple[draw.ViewParams, int, U1]]] = {}
        for (row, slot), place in zip(wanted_U2.tolist(), out, strict=True):
            view, picture = loaded[slot % len(loaded)], row
            params = view.params
            if slot >= len(loaded):
                assert view.partner is not None and view.partner_N is not None
                params, picture = view.partner, int(view.partner_N[row])
            of_picture.setdefault(picture, []).append((params, row, place))
        tasks = [*of_picture.items()]
        pieces = (tasks[i : i + _PICTURES] for i in range(0, len(tasks), _PICTURES))
        for _ in renderers.map(self._render_all, pieces):
            pass

    def _render_all(self, tasks: list[tuple[int, list[tuple[draw.ViewParams, int, U1]]]]) -> None:
        for picture, wanted in tasks:
            self._renderer.render(picture, wanted)


def _places(own_B: I8, count: int) -> I8:
    """Where each of so many pictures goes: the batch's to their first view, others behind them."""
    at_U = np.full(count, -1)
    at_U[own_B[::-1]] = np.arange(len(own_B))[::-1]
    others = np.flatnonzero(at_U < 0)
    at_U[others] = len(own_B) + np.arange(len(others))
    return at_U


def check_all(members: Members, images: Images, present_N: NDArray[np.bool_] | None = None) -> None:
    """`check` of each cache: that their pixels are these is what allows to mix them."""
    for store in members.stores:
        check(store, images, present_N)


def check(store: Cache, images: Images, present_N: NDArray[np.bool_] | None = None) -> None:
    """Refuse to train on a cache that is not whole, or on other pixels than the teacher's.

    Looks at every part's digests and renders the probe views of up to 64 parts, spread evenly.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the file or the sample.
    """
    parts = list(store.parts())
    if store.is_remote:
        parts = _check_remote(store)
    else:
        with progress.bar("check the cache", len(parts), "parts") as advance:
            for _, fault in verify.faults(store):
                if fault is not None:
                    raise fault
                advance(1)
    count = min(len(parts), _MAX_PROBED_PARTS)
    spread = [parts[i * len(parts) // count] for i in range(count)]
    looked = sum(verify.check_probes(store, images, part, present_N) for part in spread)
    if not looked:
        log.warning(
            "no fingerprint of the pixels of these samples is in %s (it was cut, or they are not "
            "here): that they are those the teacher saw follows from the library versions alone",
            store.name,
        )


def _check_remote(store: Cache) -> list[Part]:
    """Refuse a cache at a URL that lacks parts; those of its first view, to look at.

    Bytes and pixels of the others are checked when an epoch's parts are fetched.
    """
    log.info("%s: parts are fetched as epochs want them, and kept on this machine", store.name)
    committed = store.committed()
    for part in store.parts():
        if part not in committed:
            raise store.check_part(part) or CacheIncomplete(f"{part} of {store.name} is missing.")
    return [part for part in committed if part.view == 0]
