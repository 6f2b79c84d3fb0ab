"""(epoch, step) → which view of which sample: a pure function, whatever happened before.

Epoch e shows every sample `views_per_epoch` = m times, in views e·m … e·m + m - 1 modulo V, so that
a cache of V views serves any number of epochs. The order is drawn by counter from the run's seed.
Mixup partners stand side by side in it, so that a picture is decoded once for both.

Shapes: N samples, V views, M = m·N views of an epoch, B views of a batch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools import rng, views
from cache_tools.errors import UsageError
from cache_tools.store import Store
from cache_tools.views import LAM_ONE

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """One epoch: M views in the order in which they are shown."""

    views: tuple[int, ...]
    """The view numbers of this epoch."""
    row_M: I8
    """Row of the sample table."""
    slot_M: I8
    """Which of `views`."""
    partner_M: I8
    """Row of the mixup partner (of the same view); the row itself when there is none."""
    lam_M: I4
    """Weight of the row's own pixels in 1/65536."""


class Schedule:
    """The order of views of one run."""

    def __init__(self, store: Store, views_per_epoch: int, batch_size: int, seed: int) -> None:
        """A schedule over `store`; UsageError when an epoch has not even one batch."""
        self._store = store
        self._m = views_per_epoch
        self._seed = seed
        self.batch_size = batch_size
        n = len(store.table)
        self.steps = n * views_per_epoch // batch_size
        if views_per_epoch > store.num_views:
            raise UsageError(
                f"views_per_epoch is {views_per_epoch}, the cache has {store.num_views} views."
            )
        if self.steps == 0:
            raise UsageError(
                f"an epoch has {n * views_per_epoch} views, fewer than batch_size={batch_size}. "
                f"Pass batch_size={n * views_per_epoch} or less."
            )

    def view_numbers(self, epoch: int) -> tuple[int, ...]:
        """The views that `epoch` shows of every sample."""
        return tuple((epoch * self._m + j) % self._store.num_views for j in range(self._m))

    def plan(self, epoch: int) -> Plan:
        """The whole order of one epoch."""
        numbers, ids = self.view_numbers(epoch), self._store.table.id_N
        n = len(ids)
        keys, partners, lams = [], [], []
        for j, view in enumerate(numbers):
            partner, lam = self._pairs(view)
            leader = np.minimum(np.arange(n), partner)
            counter = epoch * self._m + j
            keys.append(rng.bits(self._seed, ids, counter, rng.STREAM_ORDER, 1)[leader, 0])
            partners.append(partner)
            lams.append(lam)
        order = np.argsort(np.concatenate(keys), kind="stable")
        rows = np.tile(np.arange(n), len(numbers))
        slots = np.repeat(np.arange(len(numbers)), n)
        return Plan(
            numbers,
            rows[order],
            slots[order],
            np.concatenate(partners)[order],
            np.concatenate(lams)[order],
        )

    def _pairs(self, view: int) -> tuple[I8, I4]:
        """Mixup partner (row of the table) and λ of every sample in one view."""
        spec, ids = self._store.spec, self._store.table.id_N
        partner = np.arange(len(ids))
        lam = np.full(len(ids), LAM_ONE, dtype=np.int32)
        if spec.views.mixup:
            for begin in range(0, len(ids), spec.window):
                window = slice(begin, begin + spec.window)
                within, lam[window] = views.mix(spec.views, ids[window], view)
                partner[window] = begin + within
        return partner, lam
