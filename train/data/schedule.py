"""Order of views: (epoch, step) → views and samples, a pure function.

Epoch e shows every sample `views_per_epoch` = m times, in views e·m … e·m + m - 1 modulo V, so that
a cache of V views serves any number of epochs; or in groups of m whose order is drawn anew each
time all have been shown. Every order is drawn by counter from the run's seed.
Mixup partners are adjacent in it.

With repeated augmentation all views of a picture and of its partner are in the same update, where
they are dealt out like cards, in pairs of partners: first to the steps of a span (a few steps of
the update), then to the processes. So batch normalisation sees as many pictures as the number of
batches allows: with r or more in a span and process together, no picture twice, as timm's
`RepeatAugSampler` has it for r or more processes. The views of a step depend on no number of
processes, and a process decodes a picture once for all its views in a span.

Shapes: N samples, V views, M = m·N views of an epoch, B views of a batch, P views of a span or
step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import UsageError
from cache_tools.numerics import field_arrays, rng
from cache_tools.numerics.array_types import I4, I8, U8, Rows
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.views.draw import LAMBDA_SCALE, MixParams
from train.data.inputs import Inputs
from train.distributed import World
from train.recipe import Phase, TrainRecipe

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Plan:
    """One epoch: M views in the order in which they are shown.

    Columns that have one value may be that one, broadcast.
    """

    views: tuple[int, ...]
    """The view numbers of this epoch."""
    row_M: Rows
    """Row of the sample table."""
    slot_M: Rows
    """Index into `views`."""
    partner_M: Rows
    """Row of the mixup partner (of the same view); the row itself when there is none."""
    lam_M: I4
    """Share of the row itself in 1/65536."""
    cut_M4: Rows
    """Cutmix box; height 0 when the view is not cut."""
    outside_M: I4 | None = None
    """As `MixParams.outside_B`."""


class Schedule:
    """The order of views of one run."""

    def __init__(
        self,
        store: Cache,
        views_per_epoch: int,
        batch_size: int,
        seed: int,
        *,
        aug_repeats: int = 1,
        grad_accum_steps: int = 1,
        num_views: int | None = None,
        shuffle: bool = False,
        present_N: NDArray[np.bool_] | None = None,
        epochs: int | None = None,
        size: int = 0,
    ) -> None:
        """Order the views of `store`.

        Args:
            store: The cache.
            views_per_epoch: Views of every sample per epoch, m.
            batch_size: Views per step.
            seed: Seed of the order.
            aug_repeats: Repeated augmentation (Hoffer et al., CVPR 2020): with r > 1 an epoch shows
                one r-th of the samples in r views each, and r epochs show all of them in the same
                views: V epochs show every view of every sample once. When partners stay for
                these views (`pair_views`), pairs are shown whole, so that nothing is decoded for
                a partner alone.
            grad_accum_steps: Steps of an update, A, among which repeated views are dealt out.
            num_views: Views of the cache that are shown, V; None: all.
            shuffle: Draw the order of views anew each time all have been shown.
            present_N: [N] True where the sample has an image; None: all. A view whose partner has
                none is left out, since its target is of both pictures. How many are left out
                differs from view to view; an epoch is as long as the shortest one.
            epochs: Epochs of the run; None: unset.
            size: Pixels a side at which the views are rendered; 0: the cache's own.

        Raises:
            UsageError: An epoch has not even one batch, the cache too few views, or views of a
                fixed size.
        """
        if present_N is None or present_N.all():
            present_N = np.ones(len(store.table), dtype=bool)
        elif aug_repeats > 1 and store.spec.views.mixes:
            raise UsageError(
                f"aug_repeats={aug_repeats} shows pairs of a mixing cache in turns, which "
                "is impossible when some partners are missing. Pass aug_repeats=1, or the whole "
                "data set."
            )
        self.present_N = present_N
        """[N] True where the sample can be shown."""
        few = len(present_N) <= np.iinfo(np.int32).max
        self._row_type: Any = np.int32 if few else np.int64
        self.epochs = epochs
        """Epochs of the run; None: unset."""
        self.views = view_params.at_size(store, size)
        """The augmentation, at the student's size."""
        self._store = store
        self._num_shown = num_views or store.num_views
        self._m = views_per_epoch * aug_repeats
        self.aug_repeats = aug_repeats
        self._steps_per_update = grad_accum_steps
        self._seed = seed
        self._shuffle = shuffle
        self.batch_size = batch_size
        if self._m > (most := self._num_shown):
            shown = f", of which num_views={most} are shown" * (most < store.num_views)
            lower = f"views_per_epoch={most // aug_repeats}"
            if most < aug_repeats:
                lower = f"views_per_epoch=1 aug_repeats={most}"
            raise UsageError(
                f"an epoch shows {self._m} views of a sample, the cache has {store.num_views} "
                f"views{shown}. Pass {lower} or less, or a cache of more views: kdcache cache with "
                f"num_views={self._m}."
            )
        self.num_views = self._length()
        self.steps = self.num_views // batch_size
        if self.steps == 0:
            raise UsageError(
                f"an epoch has {self.num_views} views, fewer than batch_size={batch_size}. "
                f"Pass batch_size={self.num_views} or less."
            )

    @classmethod
    def of(cls, recipe: TrainRecipe, inputs: Inputs, epochs: int | None, phase: Phase) -> Self:
        """Make the schedule of a phase of a recipe, which ends with `epochs` (None: unset)."""
        return cls(
            inputs.store,
            recipe.views_per_epoch,
            phase.batch_size,
            recipe.seed_of_order,
            aug_repeats=recipe.aug_repeats,
            grad_accum_steps=recipe.grad_accum_steps,
            num_views=inputs.num_views(recipe),
            shuffle=recipe.view_order == "shuffle",
            present_N=inputs.present_N,
            epochs=epochs,
            size=phase.size,
        )

    def view_numbers(self, epoch: int) -> tuple[int, ...]:
        """List the views of `epoch`; with repeats r, the same in the r epochs of a turn."""
        turn = epoch // self.aug_repeats
        if self._shuffle:
            groups = self._num_shown // self._m
            cycle, position = divmod(turn, groups)
            numbers = np.arange(groups, dtype=np.uint64)
            keys = rng.bits(self._seed, numbers, cycle, rng.STREAM_VIEWS, 1)[:, 0]
            turn = int(np.argsort(keys, kind="stable")[position])
        first = turn * self._m
        return tuple((first + j) % self._num_shown for j in range(self._m))

    @property
    def spans(self) -> list[range]:
        """Steps of an epoch in runs; repeated views of a picture are in different steps of a run.

        A run has r to 2r - 1 steps of one update, all of an update of fewer, and one without
        repeats.
        """
        edges = []
        for first in range(0, self.steps, self._steps_per_update):
            steps = min(self._steps_per_update, self.steps - first)
            count = max(1, steps // self.aug_repeats)
            edges += [first + steps * i // count for i in range(count)]
        return [range(begin, end) for begin, end in pairwise([*edges, self.steps])]

    def share(self, plan: Plan, step: int, world: World) -> I8:
        """Positions in an epoch's plan of the views that this process has in a step.

        Raises:
            UsageError: A batch cannot be divided evenly among the processes.
        """
        count = self._count(world)
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        if self.aug_repeats > 1 and world.size > 1:
            at = at[_deal(plan.row_M[at], plan.partner_M[at], world.size)]
        return at.reshape(world.size, count)[world.rank]

    def rows(self, plan: Plan, world: World) -> list[Rows] | None:
        """Rows of the views of each slot that this process has in an epoch, and of their partners.

        Ascending, each once; None where one process has all.
        """
        if world.size == 1:
            return None
        at = np.concatenate([self.share(plan, step, world) for step in range(self.steps)])
        found = []
        for slot in range(len(plan.views)):
            own = at if len(plan.views) == 1 else at[plan.slot_M[at] == slot]
            shown_N = np.zeros(len(self._store.table), np.bool_)
            shown_N[plan.row_M[own]] = shown_N[plan.partner_M[own]] = True
            found.append(np.flatnonzero(shown_N).astype(plan.row_M.dtype))
        return found

    def max_pictures(self, world: World) -> int:
        """Upper bound of the views and mixup partners in this process's share of a batch."""
        count = self._count(world)
        if not self._store.spec.views.mixes:
            return count
        if self.aug_repeats > 1 or view_params.has_partner_params(self._store):
            return 2 * count
        return min(2 * count, count + 2)  # partners are adjacent, but for those at the ends

    def _count(self, world: World) -> int:
        """Count the views of a step in each process; UsageError if they differ."""
        if self.batch_size % world.size:
            raise UsageError(
                f"batch_size={self.batch_size} cannot be divided among {world.size} processes. "
                "Pass a multiple of their number."
            )
        return self.batch_size // world.size

    def plan(self, epoch: int) -> Plan:
        """Draw the order of one epoch."""
        numbers, shown = self.view_numbers(epoch), self._shown(epoch)
        mixes: list[MixParams] = []
        rows, keys = [], []
        for j, view in enumerate(numbers):
            whole, counter = shown, epoch * self._m + (j if self.aug_repeats == 1 else 0)
            mix = self._mixing(view)
            drawn = self._draw(mix, numbers, counter, rng.STREAM_ORDER)
            if mix is not None:
                mixes.append(mix)
                if self.aug_repeats > 1 and self._keeps_pairs(numbers):
                    own = np.arange(len(drawn))  # the odd ones behind all pairs
                    alone = (mix.partner_B == own) | ~np.isin(mix.partner_B, shown)
                    drawn[alone] = np.iinfo(drawn.dtype).max
                if not self.present_N.all():
                    whole = shown[self.present_N[mix.partner_B[shown]]]
            rows.append(whole)
            keys.append(drawn if len(whole) == len(drawn) else drawn[whole])
        order = np.argsort(_join(keys), kind="stable")[: self.num_views]
        del keys, drawn
        slot, row = _slots([len(whole) for whole in rows]), _join(rows)
        if not mixes:
            self._deal_out(order, row, row)
            row_M = row[order]
            lam_M = np.broadcast_to(np.int32(LAMBDA_SCALE), len(order))
            cut_M4 = np.broadcast_to(np.int32(0), (len(order), 4))
            return Plan(numbers, row_M, _at(slot, order), row_M, lam_M, cut_M4)
        of_rows = [
            mix if len(whole) == len(mix.lam_B) else mix.rows(whole)
            for mix, whole in zip(mixes, rows, strict=True)
        ]
        partner = _join([mix.partner_B for mix in of_rows])
        self._deal_out(order, row, partner)
        outside = [mix.outside_B for mix in of_rows if mix.outside_B is not None]
        return Plan(
            numbers,
            row[order],
            _at(slot, order),
            partner[order],
            _join([mix.lam_B for mix in of_rows])[order],
            _join([mix.cut_B4 for mix in of_rows])[order],
            _join(outside)[order] if outside else None,
        )

    def names(self, epoch: int, step: int) -> list[str]:
        """Name the views of one step, as "key (view 3)"."""
        plan, keys = self.plan(epoch), self._store.table.keys
        at = slice(step * self.batch_size, (step + 1) * self.batch_size)
        pairs = zip(plan.row_M[at].tolist(), plan.slot_M[at].tolist(), strict=True)
        return [f"{keys[row]} (view {plan.views[slot]})" for row, slot in pairs]

    def _shown(self, epoch: int) -> Rows:
        """Rows of the table that an epoch shows, ascending."""
        if self.aug_repeats == 1:
            every = np.arange(len(self.present_N), dtype=self._row_type)
            return every if self.present_N.all() else every[self.present_N]
        turn, position = divmod(epoch, self.aug_repeats)
        numbers = self.view_numbers(epoch)
        keys = self._draw(self._mixing(numbers[0]), numbers, turn, rng.STREAM_REPEAT)
        order = np.argsort(keys, kind="stable")
        order = order[self.present_N[order]]
        count = len(order) // self.aug_repeats
        shown: Rows = order[position * count : (position + 1) * count].astype(self._row_type)
        return np.sort(shown)

    def _mixing(self, view: int) -> MixParams | None:
        """Return how a view of all samples is mixed, in small numbers; None where none is."""
        spec = self._store.spec
        if not spec.views.mixes:
            return None

        def of_block(block: int) -> MixParams:
            rows = spec.rows(block)
            mix = view_params.mixing(self._store, view, rows.start, rows.stop, self.views)
            partner = mix.partner_B.astype(self._row_type)
            cut: Any = mix.cut_B4.astype(np.int16)  # a view has at most 4,096 pixels a side
            return replace(mix, partner_B=partner, cut_B4=cut)

        return field_arrays.collect(map(of_block, range(spec.num_blocks)), len(self.present_N))

    def _draw(
        self, mix: MixParams | None, numbers: tuple[int, ...], counter: int, stream: int
    ) -> U8:
        """Draw the numbers by which rows are ordered: of partners that of the first, [N]."""
        drawn = rng.first_bits(self._seed, self._store.table.id_N, counter, stream)
        # repeated views with several partners: the views of a sample are adjacent
        single = self.aug_repeats > 1 and not self._keeps_pairs(numbers)
        if mix is None or single or view_params.has_partner_params(self._store):
            return drawn
        own = np.arange(len(drawn), dtype=self._row_type)
        return np.asarray(drawn[np.minimum(own, mix.partner_B, out=own)])

    def _deal_out(self, order: I8, row: Rows, partner: Rows) -> None:
        """Deal out the repeated views of pictures, in place, to the steps of each span."""
        for steps in self.spans if self.aug_repeats > 1 else ():
            at = order[steps.start * self.batch_size : steps.stop * self.batch_size]
            if len(steps) > 1:
                at[:] = at[_deal(row[at], partner[at], len(steps))]

    def _length(self) -> int:
        """Count the views of an epoch; with missing partners, of the shortest."""
        shown = self._shown(0)
        if self.present_N.all() or not self._store.spec.views.mixes:
            return len(shown) * self._m
        partners = (view_params.mixing(self._store, v).partner_B for v in range(self._num_shown))
        whole = [self.present_N[partner[shown]].sum() for partner in partners]
        starts = range(self._num_shown)
        around = [*whole, *whole]
        return int(min(sum(around[first : first + self._m]) for first in starts))

    def _keeps_pairs(self, numbers: tuple[int, ...]) -> bool:
        """Return True if every sample has one partner, a sample as well, in all of these views."""
        spec = self._store.spec.views
        turns = {number // spec.pair_views for number in numbers}
        return spec.mixes and len(turns) == 1 and not view_params.has_partner_params(self._store)


def _slots(lengths: list[int]) -> Rows:
    """Return the index into an epoch's views of the rows of each, one after the other."""
    if len(lengths) == 1:
        return np.broadcast_to(np.int16(0), lengths[0])
    slots = np.arange(len(lengths), dtype=np.int16 if len(lengths) < 2**15 else np.int32)
    return np.repeat(slots, lengths)


def _at(column: NDArray[T], order: I8) -> NDArray[T]:
    """Select rows of a column; one that is broadcast stays so."""
    return column[order] if column.strides[0] else column[: len(order)]


def _join(pieces: Sequence[NDArray[T]]) -> NDArray[T]:
    """Concatenate arrays; one alone is not copied."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _deal(row_P: Rows, partner_P: Rows, hands: int) -> I8:
    """Order views such that each of `hands` equal parts has as many pictures as possible.

    Partners stay together unless one of them is missing or a part has an odd number of views.
    """
    if len(np.unique(row_P)) == len(row_P):
        return np.arange(len(row_P))
    pairs = len(row_P) % (2 * hands) == 0 and bool(
        ((row_P[::2] == partner_P[1::2]) & (row_P[::2] != row_P[1::2])).all()
    )
    order = np.arange(len(row_P)) if pairs else np.argsort(row_P, kind="stable")
    return order.reshape(-1, hands, 1 + pairs).swapaxes(0, 1).reshape(-1)
