"""Statistics of soft targets per view, from the stored targets alone: no image, no network.

    entropy    H = -Σ_kept p ln p - m ln(m / others)          the tail m counted as flat
    dropped    KL(teacher ‖ restored) of the tail ≤ m ln(cap · others / m)
    rounded    KL(teacher ‖ restored) of the kept ≈ ⅔ Σ p (1 - p) / q²

`cap` bounds every dropped class: tau if fewer than k_max classes are kept, else the smallest kept
probability. A flat tail loses the distribution of m, which was least even if as many classes as m
affords had `cap` each, hence the bound. Where Σp² of the dropped
classes is stored, Jensen's inequality gives a second bound, m ln(others · Σp² / m²), and the lower
one counts. The true entropy is below H by just the KL of the tail. `rounded` is an estimate: codes
are q = levels · p^¼, and their rounding errors are taken as uniform, so that δp/p = 4 δq/q has the
variance 4/3 q².

Shapes: B views, K slots, C classes, T temperatures.
"""

from dataclasses import dataclass

import numpy as np

from cache_tools.numerics.array_types import F8, I8
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets.codec import DecodedTargets


@dataclass(frozen=True)
class TargetStats:
    """Statistics of the targets of B views."""

    kept_B: I8
    """Number of kept classes."""
    tail_BT: F8
    """Mass of the others at each declared temperature."""
    entropy_B: F8
    """Entropy in nats with a flat tail: at least the teacher's."""
    dropped_B: F8
    """Upper bound of KL(teacher ‖ restored) due to dropped classes, in nats."""
    rounded_B: F8
    """Estimate of the KL due to rounding of the kept ones, in nats."""
    first_B: I8
    """The most probable class."""
    confidence_B: F8
    """Its probability."""


def measure(targets: DecodedTargets, spec: TargetSpec, num_classes: int) -> TargetStats:
    """Compute statistics of decoded targets."""
    p_BK, tail_BT = targets.probability_BK.astype(np.float64), targets.tail_BT.astype(np.float64)
    kept_BK = p_BK > 0
    count_B, best_B = kept_BK.sum(axis=1), p_BK.argmax(axis=1)
    others_B, m_B = num_classes - count_B, tail_BT[:, 0]
    log_p_BK = np.log(np.where(kept_BK, p_BK, 1.0))
    of_tail_B = _x_log(m_B, np.maximum(others_B, 1) / np.maximum(m_B, 1e-30))
    row_B = np.arange(len(p_BK))
    square_BK = np.square(spec.levels * p_BK**0.25)
    rounded_BK = np.divide(p_BK * (1 - p_BK), square_BK, out=np.zeros_like(p_BK), where=kept_BK)
    return TargetStats(
        count_B,
        tail_BT,
        of_tail_B - (p_BK * log_p_BK).sum(axis=1),
        _dropped(targets, spec, p_BK, others_B),
        np.asarray(rounded_BK.sum(axis=1) * 2 / 3),
        targets.index_BK[row_B, best_B].astype(np.int64),
        p_BK[row_B, best_B],
    )


def _dropped(targets: DecodedTargets, spec: TargetSpec, p_BK: F8, others_B: I8) -> F8:
    kept_BK, m_B = p_BK > 0, targets.tail_BT[:, 0].astype(np.float64)
    least_B = np.where(kept_BK, p_BK, np.inf).min(axis=1)
    code_B = np.maximum(spec.levels * least_B**0.25, 1.0)
    cap_B = least_B * ((code_B + 0.5) / code_B) ** 4  # it may have been rounded down
    room_B = kept_BK.sum(axis=1) < spec.k_max
    cap_B = np.where(room_B, np.minimum(cap_B, spec.tau), cap_B)
    mass_B = np.maximum(m_B, 1e-30)
    bound_B = _x_log(m_B, np.maximum(cap_B * others_B / mass_B, 1.0))
    if targets.square_BQ.shape[1]:
        ratio_B = targets.square_BQ[:, 0] / np.square(mass_B)
        bound_B = np.minimum(bound_B, _x_log(m_B, np.maximum(others_B * ratio_B, 1.0)))
    return bound_B


def _x_log(x_B: F8, y_B: F8) -> F8:
    return np.asarray(np.where(x_B > 0, x_B * np.log(y_B), 0.0))
