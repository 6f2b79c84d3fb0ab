"""Logits ↔ stored target: the classes that matter, a byte for each, and what the rest weighs.

A view's target keeps the classes whose probability exceeds tau (at least k_min, at most k_max),
sorted by class. Stored per view: differences of the class ids (u2), probabilities on a companded
scale q = round(127·p^¼) (u1), and the mass of all other classes at each declared temperature as a
log-odds code (u1). Masses are sums over the classes not kept, so that a confident teacher's tail
is never lost to 1 - (1 - ε). FORMAT.md, section 4, is the specification; why these numbers: the
error of a sparse target is its dropped tail, hardly the precision of the kept values.

Shapes: B views, K slots, C classes, T temperatures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools import exact
from cache_tools.spec import TargetSpec

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
U1 = NDArray[np.uint8]
U2 = NDArray[np.uint16]
I8 = NDArray[np.int64]

FILL_DELTA = 65_535
FILL_CODE = 255
_SCALE = 127.0
_ODDS_LOW, _ODDS_HIGH = -11.0, 7.0
_ODDS_STEPS = 253  # codes 1..254


@dataclass(frozen=True)
class Stored:
    """B targets as they lie in the arrays."""

    index_delta_BK: U2
    """First class id + 1, then differences of ascending ids; 0 = empty slot."""
    code_BK: U1
    """1..127 for a kept class, 0 = empty slot."""
    tail_BT: U1
    """Log-odds code of the mass of the classes not kept; 0 = there is none."""


@dataclass(frozen=True)
class Targets:
    """B decoded targets."""

    index_BK: I8
    """Class ids; 0 in empty slots."""
    probability_BK: F4
    """Probabilities at T = 1; 0 in empty slots. With tail_BT[:, 0] they add up to 1."""
    tail_BT: F4
    """Mass of the classes not kept, at each temperature."""


def levels() -> F4:
    """[256] fp32: code → probability before the row is scaled to 1 - tail; 0 outside 1..127."""
    table = np.zeros(256)
    square = np.square(np.arange(1, 128) / _SCALE)
    table[1:128] = square * square
    return table.astype(np.float32)


def tail_levels() -> F4:
    """[256] fp32: tail code → mass; 0 for code 0 and for the fill value."""
    table = np.zeros(256)
    step = (_ODDS_HIGH - _ODDS_LOW) / _ODDS_STEPS
    table[1:255] = 1.0 / (1.0 + exact.exp(-(_ODDS_LOW + step * np.arange(254.0))))
    return table.astype(np.float32)


def sparsify(logits_BC: NDArray[np.floating], spec: TargetSpec) -> tuple[I8, F8, F8]:
    """Choose the classes to keep: the reference that the device version is tested against.

    Returns:
        index_BK (any order, -1 = not kept), probability_BK (0 = not kept) and tail_BT.
    """
    probability_BC = _softmax(logits_BC.astype(np.float64))
    top = np.argsort(-probability_BC, axis=1, kind="stable")[:, : spec.k_max]
    p = np.take_along_axis(probability_BC, top, axis=1)
    keep = (p > spec.tau) | (np.arange(p.shape[1]) < spec.k_min)
    kept_BC = np.zeros(probability_BC.shape, dtype=bool)
    np.put_along_axis(kept_BC, top, keep, axis=1)
    masses = [_softmax(logits_BC.astype(np.float64) / t) for t in spec.temperatures]
    tail = np.stack([np.where(kept_BC, 0.0, m).sum(axis=1) for m in masses], axis=1)
    return np.where(keep, top, -1), np.where(keep, p, 0.0), tail


def encode(
    index_BK: I8,
    probability_BK: NDArray[np.floating],
    tail_BT: NDArray[np.floating],
    num_classes: int,
) -> Stored:
    """Pack sparse targets.

    Args:
        index_BK: Class ids in any order; -1 in slots that are not used.
        probability_BK: Their probabilities at T = 1.
        tail_BT: Mass of all other classes at each temperature.
        num_classes: C; a view that keeps all C classes has no tail.
    """
    empty = np.iinfo(np.int64).max
    ids = np.where(index_BK < 0, empty, index_BK)
    order = np.argsort(ids, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    kept = ids != empty
    ids = np.where(kept, ids, 0)
    delta = np.diff(ids, axis=1, prepend=-1)
    p = np.take_along_axis(probability_BK, order, axis=1)
    code = np.clip(np.rint(_SCALE * np.sqrt(np.sqrt(np.clip(p, 0.0, 1.0)))), 1, _SCALE)
    full = kept.sum(axis=1, keepdims=True) == num_classes
    tail = np.where(full, 0, _encode_tail(tail_BT))
    return Stored(
        np.where(kept, delta, 0).astype(np.uint16),
        np.where(kept, code, 0).astype(np.uint8),
        tail.astype(np.uint8),
    )


def decode(stored: Stored) -> Targets:
    """Unpack targets; the inverse of `encode` up to the rounding of the codes."""
    kept = stored.code_BK > 0
    index = np.cumsum(stored.index_delta_BK, axis=1, dtype=np.int64) - 1
    tail = tail_levels()[stored.tail_BT]
    p = levels()[stored.code_BK]
    p *= (1.0 - tail[:, :1]) / p.sum(axis=1, keepdims=True)
    return Targets(np.where(kept, index, 0), p, tail)


def check(stored: Stored, num_classes: int) -> str | None:
    """What is impossible about stored targets, or None: the verifier's look at the values."""
    kept = stored.code_BK > 0
    index = np.cumsum(stored.index_delta_BK, axis=1, dtype=np.int64) - 1
    if (stored.code_BK > _SCALE).any():
        return "a code above 127 (or the fill value)"
    if (kept != (stored.index_delta_BK > 0)).any():
        return "a class without a code, or a code without a class"
    if not kept[:, 0].all() or (np.diff(kept.astype(np.int8), axis=1) > 0).any():
        return "an empty slot before a class"
    if (index[kept] >= num_classes).any():
        return f"a class id beyond {num_classes - 1}"
    if (stored.tail_BT == FILL_CODE).any():
        return "a tail code that is the fill value"
    return None


def expected_bytes(num_classes: int, kept: float, temperatures: int) -> float:
    """Bytes per view to plan with: ids at their entropy as a set, 5.9 bits a code, the tails.

    Measured within a few percent of what the recommended Zarr codecs reach on distinct photos.
    """
    n, k = float(num_classes), min(float(kept), float(num_classes) - 1e-9)
    share = k / n
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return float((n * entropy + 5.9 * k) / 8 + temperatures)


def _softmax(logits_BC: NDArray[np.floating]) -> F8:
    shifted = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def _encode_tail(tail_BT: NDArray[np.floating]) -> NDArray[np.floating]:
    mass = np.clip(tail_BT.astype(np.float64), 1e-30, 1.0 - 1e-9)
    odds = np.clip(exact.log(mass / (1.0 - mass)), _ODDS_LOW, _ODDS_HIGH)
    step = (_ODDS_HIGH - _ODDS_LOW) / _ODDS_STEPS
    return np.asarray(1 + np.rint((odds - _ODDS_LOW) / step))
