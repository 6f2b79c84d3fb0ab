"""(epoch, step) → which view of which sample: a pure function, whatever happened before.

Epoch e shows every sample `views_per_epoch` = m times, in views e·m … e·m + m - 1 modulo V, so that
a cache of V views serves any number of epochs. The order is drawn by counter from the run's seed.
Mixup partners stand side by side in it, and with repeated augmentation all views of both, so that
a picture is decoded once for all of them.

Shapes: N samples, V views, M = m·N views of an epoch, B views of a batch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools import rng, views
from cache_tools.errors import UsageError
from cache_tools.store import Store

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
    """Share of the row itself in 1/65536."""
    cut_M4: I4
    """Cutmix box; height 0 when the view is not cut."""


class Schedule:
    """The order of views of one run."""

    def __init__(
        self, store: Store, views_per_epoch: int, batch_size: int, seed: int, repeats: int = 1
    ) -> None:
        """A schedule over `store`.

        Args:
            store: The cache.
            views_per_epoch: Views of every sample per epoch, m.
            batch_size: Views per step.
            seed: Seed of the order.
            repeats: Repeated augmentation (Hoffer et al., CVPR 2020): with r > 1 an epoch shows
                one r-th of the samples in r views each, and r epochs show all of them in the same
                views: V epochs show every view of every sample once. When partners stay for
                these views (`pair_views`), pairs are shown whole, so that nothing is decoded for
                a partner alone.

        Raises:
            UsageError: An epoch has not even one batch, or the cache too few views.
        """
        self._store = store
        self._m = views_per_epoch * repeats
        self._repeats = repeats
        self._seed = seed
        self.batch_size = batch_size
        self.num_views = len(self._shown(0)) * self._m
        self.steps = self.num_views // batch_size
        if self._m > store.num_views:
            raise UsageError(
                f"an epoch wants {self._m} views of a sample, the cache has {store.num_views} "
                "views."
            )
        if self.steps == 0:
            raise UsageError(
                f"an epoch has {self.num_views} views, fewer than batch_size={batch_size}. "
                f"Pass batch_size={self.num_views} or less."
            )

    def view_numbers(self, epoch: int) -> tuple[int, ...]:
        """The views that `epoch` shows; with repeats r, the same in the r epochs of a turn."""
        first = epoch // self._repeats * self._m
        return tuple((first + j) % self._store.num_views for j in range(self._m))

    def plan(self, epoch: int) -> Plan:
        """The whole order of one epoch."""
        numbers, ids = self.view_numbers(epoch), self._store.table.id_N
        shown, n = self._shown(epoch), len(ids)
        keys, partners, lams, cuts = [], [], [], []
        for j, view in enumerate(numbers):
            partner, lam, cut = self._pairs(view)
            leader = np.minimum(np.arange(n), partner)
            counter = epoch * self._m + (j if self._repeats == 1 else 0)
            drawn = rng.bits(self._seed, ids, counter, rng.STREAM_ORDER, 1)[leader, 0]
            keys.append(drawn[shown])
            partners.append(partner[shown])
            lams.append(lam[shown])
            cuts.append(cut[shown])
        order = np.argsort(np.concatenate(keys), kind="stable")
        rows = np.tile(shown, len(numbers))
        slots = np.repeat(np.arange(len(numbers)), len(shown))
        return Plan(
            numbers,
            rows[order],
            slots[order],
            np.concatenate(partners)[order],
            np.concatenate(lams)[order],
            np.concatenate(cuts)[order],
        )

    def names(self, epoch: int, step: int) -> list[str]:
        """The views of one step, as "key (view 3)"."""
        plan, keys = self.plan(epoch), self._store.table.keys
        at = slice(step * self.batch_size, (step + 1) * self.batch_size)
        pairs = zip(plan.row_M[at].tolist(), plan.slot_M[at].tolist(), strict=True)
        return [f"{keys[row]} (view {plan.views[slot]})" for row, slot in pairs]

    def _shown(self, epoch: int) -> I8:
        """Rows of the table that an epoch shows, ascending."""
        ids = self._store.table.id_N
        if self._repeats == 1:
            return np.arange(len(ids))
        turn, position = divmod(epoch, self._repeats)
        keys = rng.bits(self._seed, ids, turn, rng.STREAM_REPEAT, 1)[:, 0]
        numbers, spec = self.view_numbers(epoch), self._store.spec.views
        if spec.mixes and len({number // spec.pair_views for number in numbers}) == 1:
            keys = keys[np.minimum(np.arange(len(ids)), self._pairs(numbers[0])[0])]
        count = len(ids) // self._repeats
        order = np.argsort(keys, kind="stable")[position * count : (position + 1) * count]
        return np.sort(order)

    def _pairs(self, view: int) -> tuple[I8, I4, I4]:
        """Mixing partner (row of the table), λ and cutmix box of every sample in one view."""
        spec, ids = self._store.spec, self._store.table.id_N
        begins = range(0, len(ids), spec.window)
        windows = [views.mix(spec.views, ids[b : b + spec.window], view) for b in begins]
        return (
            np.concatenate([b + w.partner_B for b, w in zip(begins, windows, strict=True)]),
            np.concatenate([w.lam_B for w in windows]),
            np.concatenate([w.cut_B4 for w in windows]),
        )
