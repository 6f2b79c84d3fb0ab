"""Mixture of several teachers' targets on the same views: a weighted mean of probabilities.

A member i stores p_i(c) of the classes K_i that it keeps, and the mass m_i of the C - k_i others.
Taking those as flat, u_i = m_i / (C - k_i) each, as `dense.densify` does, the mixture with weights
w_i (Σ w_i = 1) gives any class

    q(c) = Σ_i w_i · (p_i(c) where c ∈ K_i, else u_i) = ū + Σ_{i: c ∈ K_i} w_i (p_i(c) - u_i),

with ū = Σ_i w_i u_i. Outside of the union U of all K_i that is ū for every class: the mixture of
flat tails is a flat tail, of mass (C - |U|) ū. So U with these q and this tail *is* the weighted
mean of the members' dense distributions, without loss.

* A class that one member keeps and another does not gets the other's flat share u_i. With
  tail="zero" the members are used without their tails, p_i / (1 - m_i), and that share is 0.
* Where a member stores the probability of the true class apart (`targets.true_class`), that class
  counts as kept, and its tail is the rest: the share is then not flat but exact.
* Temperature: the ensemble is the mixture at T = 1, and tempering applies to it, q^(1/T) / Z, as if
  one network had predicted q. A flat tail would be Σ_{c∉U} q^(1/T) = (C - |U|) ū^(1/T). The members
  are more precise at their declared temperatures: their masses m_i,T give the factor
  r_i = Σ_{c∉K_i} p_i^(1/T) / ((C - k_i) u_i^(1/T)) by which the real sum differs. The mixture takes
  Σ_i w_i u_i r_i / ū times the flat sum: exact for one member, for equal ones and for flat tails,
  an estimate otherwise (in tests within a fifth of the flat sum's error for teachers that agree).
  It declares the temperatures that all members declare.
* Σp² of a mixture's tail has products of two members' unknown values, so it does not follow from
  theirs: a mixture stores none, and losses take its tail as flat there. As no q outside U exceeds
  max(tau), Σp² is too small by less than max(tau) times the mass of the tail.

Shapes: B views, C classes, K slots (of each member, or of the union), X slots of all members, T
temperatures, P labels of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cache_tools.numerics.array_types import F8, I8
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import dense, packing
from cache_tools.targets.codec import DecodedTargets, SparseTargets

Tail = Literal["uniform", "zero"]


@dataclass(frozen=True)
class _Member:
    """Distribution of one member on B views, in double precision."""

    index_BK: I8
    p_BK: F8
    """0 in empty slots."""
    u_B: F8
    """Probability of each class not kept."""
    ratio_BT: F8
    """Factor by which Σ p^(1/T) over these exceeds that of a flat tail."""


class Mixture:
    """Weighted mean of the targets of several caches."""

    def __init__(
        self,
        weights: Sequence[float],
        specs: Sequence[TargetSpec],
        num_classes: int,
        tail: Tail = "uniform",
    ) -> None:
        """Mix members with these `TargetSpec`s by `weights`, which add up to 1."""
        self._weights = tuple(weights)
        self._specs = tuple(specs)
        self._num_classes = num_classes
        self._tail = tail
        self.temperatures = common_temperatures(specs)

    def __call__(
        self, members: Sequence[DecodedTargets], label_BP: I8 | None = None
    ) -> DecodedTargets:
        """Mix the members' targets of the same B views.

        Args:
            members: Targets of each member, in the order of the weights.
            label_BP: True classes of the views (-1 = none), for members that store those apart.

        Returns:
            Targets whose slots have the union of the classes that members keep, ascending, and
            whose temperatures are `temperatures`. True class and Σp² are empty: the true class is
            among the kept ones where a member stores it.
        """
        mixed = [self._member(*pair, label_BP) for pair in zip(members, self._specs, strict=True)]
        weighted_B = [w * s.u_B for w, s in zip(self._weights, mixed, strict=True)]
        floor_B = np.sum(weighted_B, axis=0)
        # unite the kept classes
        entries = [np.where(one.p_BK > 0, one.index_BK, -1) for one in mixed]
        excesses = [
            w * (s.p_BK - s.u_B[:, None]) for w, s in zip(self._weights, mixed, strict=True)
        ]
        index_BX, excess_BX = np.concatenate(entries, axis=1), np.concatenate(excesses, axis=1)
        # one width for all batches: a compiled student need not be compiled again
        shape = len(floor_B), min(index_BX.shape[1], self._num_classes)
        index_BK, q_BK = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        count_B = np.zeros(len(floor_B), dtype=np.int64)
        packing.merge_entries(index_BX, excess_BX, floor_B, index_BK, q_BK, count_B)
        left_B = self._num_classes - count_B
        tail_BT = np.empty((len(floor_B), len(self.temperatures)))
        tail_BT[:, 0] = left_B * floor_B
        factor_BT = sum(v[:, None] * s.ratio_BT for v, s in zip(weighted_B, mixed, strict=True))
        factor_BT = factor_BT / np.maximum(floor_B, 1e-300)[:, None]
        for t, temperature in enumerate(self.temperatures[1:], start=1):
            rest_B = left_B * floor_B ** (1 / temperature) * factor_BT[:, t]
            tail_BT[:, t] = rest_B / (rest_B + dense.temper(q_BK, temperature).sum(axis=1))
        none = np.zeros((len(floor_B), 0), dtype=np.float32)
        single = q_BK.astype(np.float32), tail_BT.astype(np.float32)
        return DecodedTargets(index_BK.astype(np.int32), *single, none, none)

    def _member(self, targets: DecodedTargets, spec: TargetSpec, label_BP: I8 | None) -> _Member:
        index_BK = targets.index_BK.astype(np.int64)
        p_BK, tail_B = (
            x.astype(np.float64) for x in (targets.probability_BK, targets.tail_BT[:, 0])
        )
        if self._tail == "zero":
            p_BK, none_B = p_BK / (1.0 - tail_B)[:, None], np.zeros_like(tail_B)
            return _Member(index_BK, p_BK, none_B, np.zeros((len(p_BK), len(self.temperatures))))
        true_BP = _true(targets, label_BP, tail_B)
        left_B = tail_B - true_BP.sum(axis=1)
        others_B = self._num_classes - (p_BK > 0).sum(axis=1) - (true_BP > 0).sum(axis=1)
        u_B = np.maximum(left_B, 0.0) / np.maximum(others_B, 1)
        ratio_BT = np.ones((len(p_BK), len(self.temperatures)))
        for t, temperature in enumerate(self.temperatures[1:], start=1):
            mass_B = targets.tail_BT[:, spec.temperatures.index(temperature)].astype(np.float64)
            sum_B = dense.temper(p_BK, temperature).sum(axis=1) * mass_B / (1.0 - mass_B)
            sum_B = np.maximum(sum_B - dense.temper(true_BP, temperature).sum(axis=1), 0.0)
            flat_B = others_B * u_B ** (1 / temperature)
            np.divide(sum_B, flat_B, out=ratio_BT[:, t], where=flat_B > 0)
        if true_BP.size and label_BP is not None:
            index_BK = np.concatenate([index_BK, label_BP], axis=1)
            p_BK = np.concatenate([p_BK, true_BP], axis=1)
        return _Member(index_BK, p_BK, u_B, ratio_BT)


def common_temperatures(specs: Sequence[TargetSpec]) -> tuple[float, ...]:
    """List the temperatures that all specs declare: 1 and then the others, ascending."""
    shared = set(specs[0].temperatures).intersection(*(s.temperatures for s in specs[1:]))
    return (1.0, *sorted(shared - {1.0}))


def sparsify(
    targets: DecodedTargets, spec: TargetSpec, label_BP: I8 | None = None
) -> SparseTargets:
    """Choose the classes to keep of a mixture: `dense.sparsify` for sparse targets.

    Args:
        targets: A mixture whose temperatures begin with those of `spec`, in this order.
        spec: Limits of the kept classes.
        label_BP: True classes (-1 = none), where the spec stores their probability.
    """
    q_BK = targets.probability_BK.astype(np.float64)
    kept_BK = dense.kept_mask(q_BK, spec) & (q_BK > 0)
    dropped_BK = np.where(kept_BK, 0.0, q_BK)
    tail_BT = targets.tail_BT[:, : len(spec.temperatures)].astype(np.float64)
    dense.extend_tail(tail_BT, q_BK, dropped_BK, spec.temperatures)
    none = np.zeros((len(q_BK), 0))
    true_BP = none
    if spec.true_class and label_BP is not None:
        here_BPK = targets.index_BK[:, None, :] == label_BP[:, :, None]
        true_BP = (here_BPK * dropped_BK[:, None, :]).sum(axis=2)
    index_BK, p_BK = np.where(kept_BK, targets.index_BK, -1), np.where(kept_BK, q_BK, 0.0)
    order = np.argsort(~kept_BK, axis=1, kind="stable")[:, : spec.k_max]  # kept slots first
    index_BK, p_BK = (np.take_along_axis(x, order, axis=1) for x in (index_BK, p_BK))
    return SparseTargets(index_BK, p_BK, tail_BT, true_BP, none)


def _true(targets: DecodedTargets, label_BP: I8 | None, tail_B: F8) -> F8:
    """Return [B, P] probabilities of true classes not kept; one of two equal labels counts."""
    true_BP = targets.true_BP.astype(np.float64)
    if label_BP is None or not true_BP.size:
        return np.zeros((len(tail_B), 0))
    true_BP[label_BP[:, : true_BP.shape[1]] < 0] = 0.0
    if true_BP.shape[1] == 2:
        true_BP[label_BP[:, 0] == label_BP[:, 1], 1] = 0.0
    excess_B = true_BP.sum(axis=1) / np.maximum(tail_B, 1e-300)  # both are rounded to codes
    return np.asarray(true_BP / np.maximum(excess_B, 1.0)[:, None])
