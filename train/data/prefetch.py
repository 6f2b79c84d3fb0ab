"""Views of an epoch with their stored targets, loaded while the epoch before is trained on.

Order, pairs and parameters of an epoch of ImageNet are seconds of work, its targets a few tenths.
All are made in the background, and kept as long as they are needed: epochs with repeated
augmentation share their views.

Shapes: N samples.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, Rows
from cache_tools.store import view_params
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.commits import Part
from cache_tools.targets.codec import EncodedTargets
from cache_tools.verify import probes
from cache_tools.views import draw
from train.data.follow import Follower
from train.data.schedule import Plan, Schedule
from train.distributed import ALONE, World


@dataclass(frozen=True)
class View:
    """One view number of N samples, in RAM: of every sample, or of a process's share of them."""

    number: int
    """Number of the view."""
    stored: tuple[EncodedTargets, ...]
    """[N, …] targets as they are stored, of each teacher."""
    params: draw.ViewParams
    """Parameters of the N views, from one vectorised draw."""
    partner: draw.ViewParams | None = None
    """Parameters of what each of the N views is mixed with, where that is no view of the cache."""
    partner_N: NDArray[np.int64] | None = None
    """Rows of the samples that these show."""
    row_N: Rows | None = None
    """Rows of the N samples, ascending; None: all."""

    def at(self, row_B: Rows) -> I8:
        """Positions among the N samples of rows of the sample table that are among them."""
        if self.row_N is None:
            return row_B.astype(np.int64, copy=False)
        return np.searchsorted(self.row_N, row_B.astype(self.row_N.dtype))


Epoch = tuple[Plan, list[View]]
"""The order of an epoch's views, and these in the order of the plan's slots."""


class EpochPrefetcher:
    """Epochs of schedules; the one after the last one returned is made in the background."""

    def __init__(
        self,
        members: CacheEnsemble,
        schedules: Sequence[Schedule],
        images: ImageDataset,
        follower: Follower | None = None,
        world: World = ALONE,
    ) -> None:
        """Prefetch the epochs of schedules that differ in the size of the views alone.

        These are 0 .. `Schedule.epochs`; where that is unset, one more each time. With a
        `follower`, only those are prefetched whose parts are there; of several processes each loads
        its share.
        """
        self._world = world
        self._members = members
        self._schedules = [*schedules]
        self._schedule = schedules[0]
        self._images = images
        self._follower = follower
        self._views: dict[int, list[View]] = {}
        self._next: tuple[int, Future[list[Epoch]]] | None = None
        self._lock = threading.Lock()

    def get(self, epoch: int) -> list[Epoch]:
        """Return an epoch of each schedule, and start to prepare the following one.

        Raises:
            CacheIncomplete, CacheDamaged: A part of the cache cannot be read.
            CacheMismatch: A part of a cache at a URL is of other pixels.
        """
        prefetched, self._next = self._next, None
        ahead = prefetched[1] if prefetched is not None and prefetched[0] == epoch else None
        found = ahead.result() if ahead is not None else self._make(epoch)
        if epoch + 1 == self._schedule.epochs:
            return found
        if self._follower and not self._follower.ready(self._schedule.view_numbers(epoch + 1)):
            return found
        background = ThreadPoolExecutor(1, thread_name_prefix="views")
        self._next = epoch + 1, background.submit(self._make, epoch + 1)
        background.shutdown(wait=False)  # the thread ends with its one task
        return found

    def _make(self, epoch: int) -> list[Epoch]:
        first, *others = [schedule.plan(epoch) for schedule in self._schedules]
        plans = [first, *(field_arrays.share(plan, first) for plan in others)]
        shares = self._schedule.rows(first, self._world)
        if shares is not None:  # other rows in every epoch
            pairs = zip(first.views, shares, strict=True)
            loaded = [self._load(number, row_N) for number, row_N in pairs]
            return [*zip(plans, map(list, zip(*loaded, strict=True)), strict=True)]
        with self._lock:
            loaded = [self._views.get(number) or self._load(number) for number in first.views]
            self._views = dict(zip(first.views, loaded, strict=True))
        return [*zip(plans, map(list, zip(*loaded, strict=True)), strict=True)]

    def _load(self, number: int, row_N: Rows | None = None) -> list[View]:
        """Load a view of all samples, or of some, with its parameters at each size."""
        store = self._members.reference
        count = store.spec.dataset.num_samples if row_N is None else len(row_N)
        sized: list[draw.ViewParams] = []
        for schedule in self._schedules:
            draw_rows = partial(view_params.parameters, store, number, spec=schedule.views)
            params = field_arrays.collect(map(draw_rows, self._blocks(row_N)), count)
            sized.append(field_arrays.share(params, sized[0]) if sized else params)
        if len(self._members.caches) > 1:
            for block in range(store.spec.num_blocks):
                self._members.params(Part(number, block))
        stored = tuple(member.read_view(number, row_N) for member in self._members.caches)
        for member in self._members.caches:
            if member.is_remote or self._follower:  # others were checked before the first epoch
                for block in range(member.spec.num_blocks):
                    part = Part(number, block)
                    probes.check_probes(member, self._images, part, self._schedule.present_N)
        if not view_params.has_partner_params(store):
            return [View(number, stored, params, row_N=row_N) for params in sized]
        draw_rows = partial(view_params.parameters, store, number, partner=True)
        others = field_arrays.collect(map(draw_rows, self._blocks(row_N)), count)
        partner_N = view_params.mixing(store, number).partner_B
        partner_N = partner_N if row_N is None else partner_N[row_N]
        return [View(number, stored, params, others, partner_N, row_N) for params in sized]

    def _blocks(self, row_N: Rows | None) -> Iterator[I8]:
        """Rows of the table that are in each block: all, or those of `row_N`, if there are any."""
        spec = self._members.reference.spec
        for block in range(spec.num_blocks):
            rows = spec.rows(block)
            found = np.array(rows)
            if row_N is not None:
                found = rows.start + spec.rows_within(block, row_N)
            if len(found):
                yield found
