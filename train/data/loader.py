"""Batches of a schedule: pixels of the views the teacher was given, and its stored targets.

A batch is a function of (epoch, step) alone: neither the renderer, nor the number of its threads,
nor an interruption changes a bit of it. A loader is put together from a schedule (which views
when), targets (of one cache or several) and a renderer (native or FFCV's), none of which depends on
another. A few batches are in the making while one is trained on; those of a span of steps
(`Schedule.spans`) are made together, so that a picture is decoded once for all its views in them;
and so are those of students of several sizes, which are shown the same views.

Shapes: B views of a batch, S pixels a side, U views and partners of a batch, each once.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.numerics.array_types import I8, U1
from cache_tools.store import view_params
from cache_tools.targets.codec import DecodedTargets
from train.data.buffer_pool import BufferPool
from train.data.follow import Follower
from train.data.prefetch import Epoch, EpochPrefetcher, View
from train.data.schedule import Plan, Schedule
from train.data.stored_targets import StoredTargets
from train.distributed import ALONE, World

AHEAD = 3
"""Batches in the making while one is trained on; at least one span."""
RenderFn = Callable[[I8, list[U1], I8], None]
"""Renders views: their rows and slots [U, 2], ascending, [S, S, 3] for the pixels of each, and the
addresses of these [U]."""


class Renderer(Protocol):
    """Makes the pixels of batches."""

    workers: int
    """Spans that are made at once."""
    takes_shares: bool
    """True if views may be of the samples of this process's share alone."""

    @property
    def images(self) -> ImageDataset:
        """The data set, in the order of the sample table."""

    def epoch(self, loaded: list[View], requests: Iterator[I8]) -> AbstractContextManager[RenderFn]:
        """Prepare one epoch.

        Args:
            loaded: Views of the epoch, with several sizes those of one after the other. Slot s is
                the view of `loaded[s]`, slot len(loaded) + s the partner of its own that an
                imported view is mixed with.
            requests: [U, 2] rows and slots of each span to come, for renderers that work ahead.

        Returns:
            A context that yields the function which renders a span; calls follow `requests`
            where `workers` is 1.
        """


@dataclass(frozen=True)
class Batch:
    """One step's data on the host."""

    pictures: U1
    """[U, S, S, 3] RGB: the batch's views, then those mixup partners that are not among them."""
    partner_at_B: I8 | None
    """Index into `pictures` of each mixup partner; None when the cache has no mixup."""
    lam_B: NDArray[np.float32]
    """Share of the view's own sample in 1/65536."""
    cut_B4: NDArray[np.int32]
    """Cutmix boxes; height 0 where there is none."""
    targets: DecodedTargets
    """Stored targets of the mixed views."""
    label_B: NDArray[np.int64]
    """Labels, NO_LABEL when the cache has none."""
    partner_label_B: NDArray[np.int64]
    """Labels of the partners."""
    temperatures: tuple[float, ...]
    """Temperatures of the targets' tails."""
    num_classes: int
    """Number of classes."""
    outside_B: NDArray[np.float32] | None = None
    """As `MixParams.outside_B`."""

    def __len__(self) -> int:
        """Count the views of the batch."""
        return len(self.lam_B)

    @property
    def pixels(self) -> U1:
        """[B, S, S, 3] RGB of the batch's views."""
        return self.pictures[: len(self)]

    @property
    def partner(self) -> U1 | None:
        """[B, S, S, 3] RGB of the mixup partners, copied, or None when the cache has no mixup."""
        return None if self.partner_at_B is None else self.pictures[self.partner_at_B]


class Loader:
    """Batches of a schedule."""

    def __init__(
        self,
        schedule: Schedule,
        targets: StoredTargets,
        renderer: Renderer,
        world: World = ALONE,
        pin_memory: bool = False,
        follower: Follower | None = None,
        others: Sequence[Schedule] = (),
    ) -> None:
        """Put a loader together.

        Args:
            schedule: Views of each step.
            targets: Their stored targets.
            renderer: Their pixels.
            world: The processes that share each batch.
            pin_memory: True to page-lock the pixels, for a GPU.
            follower: Where parts of the cache may be missing until their epoch.
            others: The same views at other sizes, for `sized`.

        Raises:
            UsageError: A batch cannot be divided evenly among the processes.
        """
        self._cache = cache = targets.members.reference
        self._schedule, self._targets, self._renderer = schedule, targets, renderer
        schedules = [schedule, *others]
        self._sizes = [one.views.size for one in schedules]
        self._world = world
        shares = world if renderer.takes_shares else ALONE
        self._epochs = EpochPrefetcher(
            targets.members, schedules, renderer.images, follower, shares
        )
        self._has_partners = view_params.has_partner_params(cache)
        most = schedule.max_pictures(world)
        self._pools = [BufferPool((most, side, side, 3), pin_memory) for side in self._sizes]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from `first_step` on."""
        return (batches[self._sizes[0]] for batches in self.sized(epoch, first_step))

    def sized(self, epoch: int, first_step: int = 0) -> Iterator[dict[int, Batch]]:
        """Yield the batches of one epoch at each size, by size, from one decode of each picture."""
        epochs = self._epochs.get(epoch)
        plan, loaded = epochs[0][0], [view for _, views in epochs for view in views]
        spans = [span[max(0, first_step - span.start) :] for span in self._schedule.spans]
        spans = [span for span in spans if span]
        ahead = max(1, AHEAD // max(map(len, self._schedule.spans)))
        requests = (self._request(plan, span)[0] for span in spans)
        queue: deque[Future[list[dict[int, Batch]]]] = deque()
        with self._renderer.epoch(loaded, requests) as render:
            pool = ThreadPoolExecutor(self._renderer.workers, thread_name_prefix="batch")
            try:
                for span in spans:
                    queue.append(pool.submit(self._make, epochs, span, render))
                    if len(queue) > ahead:
                        yield from queue.popleft().result()
                while queue:
                    yield from queue.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _request(self, plan: Plan, span: range) -> tuple[I8, I8, list[tuple[I8, int, I8]]]:
        """Row and slot of all pictures of a span, at each size, ascending.

        Returns:
            [U, 2]; their order, as indices into those of each size and step one after the other;
            and of each step the positions in the plan, the number of its pictures (each once and
            ascending), and the index into these of each view, then of each partner.
        """
        views, steps, keys = len(plan.views), [], []
        own = views * len(self._sizes)  # the first slot of partners of their own
        slots = 2 * own  # a key is one number for each pair, in their order
        for step in span:
            at = self._schedule.share(plan, step, self._world)
            slot = plan.slot_M[at]
            wanted = plan.row_M[at].astype(np.int64) * slots + slot
            if self._has_partners:
                wanted = np.concatenate([wanted, wanted + own])
            elif self._cache.spec.views.mixes:
                partner = plan.partner_M[at].astype(np.int64) * slots + slot
                wanted = np.concatenate([wanted, partner])
            key_U, index = np.unique(wanted, return_inverse=True)
            keys.append(key_U)
            steps.append((at, len(key_U), index))
        sizes = range(len(self._sizes))
        every = np.concatenate([key_U + i * views for i in sizes for key_U in keys])
        order = np.argsort(every, kind="stable")
        return np.stack(np.divmod(every[order], slots), axis=1), order, steps

    def _make(self, epochs: list[Epoch], span: range, render: RenderFn) -> list[dict[int, Batch]]:
        """Render the pictures of a span and decode its targets."""
        plan, loaded = epochs[0]
        every, order, steps = self._request(plan, span)
        laid = []
        for at, count, index in steps:
            # a picture's place is that of its first view, or behind all views
            at_U, views = np.full(count, -1), np.arange(len(at))
            at_U[index[: len(at)][::-1]] = views[::-1]
            others = np.flatnonzero(at_U < 0)
            at_U[others] = len(at) + np.arange(len(others))
            laid.append((at_U, len(at) + len(others), at_U[index]))
        out: list[U1] = []
        memory, addresses = [], []
        for pool in self._pools:
            memory.append([pool.take()[:count] for _, count, _ in laid])
            for pictures, (at_U, _, _) in zip(memory[-1], laid, strict=True):
                out += [pictures[i] for i in at_U.tolist()]
                begin = pictures.__array_interface__["data"][0]  # `ctypes` is slow
                addresses.append(begin + at_U * pictures.strides[0])
        render(every, [out[i] for i in order.tolist()], np.concatenate(addresses)[order])
        made = []
        for (at, _, _), (_, _, picture_at), *pictures in zip(steps, laid, *memory, strict=True):
            targets = self._decode(plan, loaded, at)
            made.append(
                {
                    size: self._batch(of_size, targets, at, own, picture_at)
                    for size, (of_size, _), own in zip(self._sizes, epochs, pictures, strict=True)
                }
            )
        return made

    def _decode(self, plan: Plan, loaded: list[View], at: I8) -> DecodedTargets:
        """Decode the targets of the views `at` some positions."""
        of_batch = (plan.row_M[at], plan.slot_M[at], plan.partner_M[at])
        row, slot, partner = (column.astype(np.int64) for column in of_batch)
        return self._targets.decode(loaded, slot, row, partner)

    def _batch(
        self, plan: Plan, targets: DecodedTargets, at: I8, pictures: U1, picture_at: I8
    ) -> Batch:
        """Batch of the views `at` some positions; `picture_at`: index of each view and partner."""
        for again in np.flatnonzero(picture_at[: len(at)] != np.arange(len(at))).tolist():
            pictures[again] = pictures[picture_at[again]]
        label = self._cache.table.label_N
        return Batch(
            pictures,
            picture_at[len(at) :] if self._cache.spec.views.mixes else None,
            plan.lam_M[at].astype(np.float32),
            plan.cut_M4[at].astype(np.int32),
            targets,
            label[plan.row_M[at]].astype(np.int64),
            label[plan.partner_M[at]].astype(np.int64),
            self._targets.members.temperatures,
            self._cache.spec.teacher.num_classes,
            None if plan.outside_M is None else plan.outside_M[at].astype(np.float32),
        )
