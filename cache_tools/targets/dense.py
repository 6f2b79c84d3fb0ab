"""Dense distributions ↔ sparse targets, in numpy.

`sparsify` is the reference for stage 1 on the teacher's device; `densify` is the teacher's
distribution, class by class, that a loss on sparse targets assumes.

Shapes: B views, C classes, K slots, P labels of a view.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import TeacherError
from cache_tools.numerics.array_types import F8, I8
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets.codec import DecodedTargets, SparseTargets

_NEAR = 0.01


def softmax(logits_BC: NDArray[np.floating], temperature: float = 1.0) -> F8:
    """Compute distributions at a temperature, in double precision."""
    scaled = logits_BC.astype(np.float64) / temperature
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def are_probabilities(values_BC: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Check [B] rows for being distributions: in 0..1 and adding up to 1, within half precision."""
    inside_B = ((values_BC >= 0) & (values_BC <= 1 + _NEAR)).all(axis=1)
    return np.asarray(inside_B & (np.abs(values_BC.sum(axis=1, dtype=np.float64) - 1) < _NEAR))


def refuse_probabilities(name: str, values_BC: NDArray[np.floating]) -> None:
    """Raise TeacherError if the outputs of the network `name` are what a softmax leaves."""
    if are_probabilities(values_BC).all():
        raise TeacherError(
            f"the outputs of {name} are probabilities: it ends in a softmax, and the softmax of "
            "them would be nearly flat. Remove its last layer, so that it returns logits."
        )


def sparsify(
    logits_BC: NDArray[np.floating], spec: TargetSpec, label_BP: I8 | None = None
) -> SparseTargets:
    """Choose the classes to keep: above tau, at least k_min and at most k_max of them.

    Args:
        logits_BC: Finite logits. Of equal ones the lower class id comes first.
        spec: Limits of the kept classes.
        label_BP: True classes (-1 = none), where the spec stores their probability.
    """
    p_BC = softmax(logits_BC)
    kept_BC = kept_mask(p_BC, spec)
    row_E, class_E = np.nonzero(kept_BC)
    slot_E = (np.cumsum(kept_BC, axis=1) - 1)[row_E, class_E]
    index, p = np.full((len(p_BC), spec.k_max), -1), np.zeros((len(p_BC), spec.k_max))
    index[row_E, slot_E], p[row_E, slot_E] = class_E, p_BC[row_E, class_E]
    masses = [p_BC if t == 1 else softmax(logits_BC, t) for t in spec.temperatures]
    tail = np.stack([np.where(kept_BC, 0.0, m).sum(axis=1) for m in masses], axis=1)
    rest_BC = np.where(kept_BC, 0.0, p_BC)
    labels = label_BP if spec.true_class and label_BP is not None else np.zeros((len(p), 0), int)
    true = np.where(labels < 0, 0.0, np.take_along_axis(rest_BC, np.maximum(labels, 0), axis=1))
    square = np.square(rest_BC).sum(axis=1, keepdims=True)[:, : int(spec.tail_square)]
    return SparseTargets(index, p, tail, true, square)


def densify(
    targets: DecodedTargets, spec: TargetSpec, num_classes: int, temperature: float = 1.0
) -> F8:
    """Restore [B, C] distributions at a temperature; dropped classes share their mass evenly.

    At a declared temperature the stored mass is used; at any other, that of T = 1.
    """
    p_BK, tail_BT = targets.probability_BK.astype(np.float64), targets.tail_BT.astype(np.float64)
    others = np.maximum(num_classes - (p_BK > 0).sum(axis=1), 1)
    kept_BK = p_BK ** (1.0 / temperature)
    kept_BK[p_BK == 0] = 0.0
    if temperature in spec.temperatures:
        tail = tail_BT[:, spec.temperatures.index(temperature)]
        kept_BK *= ((1.0 - tail) / kept_BK.sum(axis=1))[:, None]
    else:
        tail = others * (tail_BT[:, 0] / others) ** (1.0 / temperature)
        total = kept_BK.sum(axis=1) + tail
        kept_BK, tail = kept_BK / total[:, None], tail / total
    dense = np.repeat((tail / others)[:, None], num_classes, axis=1)
    row, slot = np.nonzero(p_BK)
    dense[row, targets.index_BK[row, slot]] = kept_BK[row, slot]
    return dense


def kl_divergence(p_BC: F8, q_BC: F8) -> F8:
    """Compute KL(p ‖ q) in nats, [B]; probabilities are at least 1e-30."""
    p, q = np.maximum(p_BC, 1e-30), np.maximum(q_BC, 1e-30)
    return np.asarray((p_BC * np.log(p / q)).sum(axis=1))


def kept_mask(p_BK: NDArray[np.floating], spec: TargetSpec) -> NDArray[np.bool_]:
    """Mask the classes to keep: above tau, at least k_min and at most k_max of them."""
    above_BK = topk_mask(p_BK, spec.k_max) & (p_BK > spec.tau)
    return np.asarray(above_BK | topk_mask(p_BK, spec.k_min))


def temper(p_BK: F8, temperature: float) -> F8:
    """Compute p^(1/T), 0 in empty slots."""
    return np.asarray(np.where(p_BK > 0, p_BK, 0.0) ** (1.0 / temperature))


def extend_tail(tail_BT: F8, p_BK: F8, dropped_BK: F8, temperatures: Sequence[float]) -> None:
    """Add the mass of classes of p that are dropped to the tail, in place, at each temperature."""
    for t, temperature in enumerate(temperatures):
        sums = (temper(x, temperature).sum(axis=1) for x in (dropped_BK, p_BK))
        tail_BT[:, t] += (1.0 - tail_BT[:, t]) * np.divide(*sums)


def topk_mask(p_BC: NDArray[np.floating], count: int) -> NDArray[np.bool_]:
    """Mask the `count` most probable classes; ties go to the lower ids."""
    if count >= p_BC.shape[1]:
        return np.ones(p_BC.shape, dtype=bool)
    least = np.partition(p_BC, -count, axis=1)[:, -count, None]
    above, equal = p_BC > least, p_BC == least
    ties_left = count - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (equal & (np.cumsum(equal, axis=1) <= ties_left)))
