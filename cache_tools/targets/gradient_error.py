"""Estimated error of a student's gradient from sparse targets, by the stored targets alone.

A student at temperature T is given the teacher's p of the kept classes and one value u for each of
the n others. Its gradient differs from that of full targets by

    e² = Σ_kept (p' - p)² + Σ_dropped (p - u)² = Σ_kept (p' - p)² + S - 2um + nu²

with m = Σ_dropped p and S = Σ_dropped p²; where T is declared, p' = p and u = m/n. The gradient of
a late student, whose logits are the teacher's plus N(0, 1), has to first order

    g² = (Σp² - 2Σp³ + (Σp²)²) / T²

The relative error is √(Σe² / Σg²) over views; noise and error are independent, so that the cosine
of both gradients is 1 / √(1 + error²). tail="bucket" shares m as the student does: it loses the
tail's part of the gradient, e² = … + S · ((1 - nu/m)² + (nu/m)² / T²), cosine √(1 - error²).

m and S follow from what is stored: F(β) = ln Σ_dropped p₁^β, of probabilities p₁ at T = 1, is known
at β = 0 (ln n), at β = 1/t of every declared t (its mass) and, with `tail_square`, at β = 2;
without it F(2) is taken within its bounds, m²/n ≤ Σ_dropped p₁² ≤ m · (smallest kept p), where real
logits have it. m takes F(1/T) and S takes F(2/T): exact at T = 2, else on the parabola through the
three nearest points.

To e² comes the rounding of the codes q = levels · p₁^¼: Σ_kept p² · 4 / (3 q² T²), and p² where q
is 1, the lowest code.

dkd is kd within the classes beside the most probable one, which stands for the true one here; dist
is taken as twice as far off as kd. `python -m benchmarks.advise` compares all with real gradients.

Shapes: B views, K slots, T temperatures.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache_tools.numerics.array_types import F8
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import dense, mixture
from cache_tools.targets.codec import DecodedTargets, SparseTargets

LIMIT = 0.5
"""Largest relative error without a warning: a cosine of 0.89."""
_WITHIN = 0.6
"""Place of ln Σ_dropped p² between its bounds: of real logits (K = 5 to 100; as they are, × 1.5 and
× 2.5) the medians are 0.37 to 0.80."""
_DIST = 2.0
"""Error of dist / that of kd."""


@dataclass(frozen=True)
class Use:
    """Use of stored targets by a student."""

    begin: float
    """Temperature at the beginning of the run."""
    end: float
    """Temperature at its end."""
    tail: str = "uniform"
    """Probability of the classes that are not kept, as of `train.recipe`."""
    keep: TargetSpec | None = None
    """Fewer classes than are stored: the most probable ones; None: all."""
    few: str = ""
    """Option that chooses `keep`, for messages."""
    loss: str = "kd"
    """Loss, as of `train.recipe`."""

    @property
    def temperatures(self) -> str:
        """Temperatures, for messages."""
        return f"{self.begin:g}{f' to {self.end:g}' if self.end != self.begin else ''}"

    @property
    def highest(self) -> float:
        """Highest temperature of the run."""
        return max(self.begin, self.end)

    def of(self, targets: DecodedTargets) -> DecodedTargets | SparseTargets:
        """Reduce targets to the classes that are used."""
        return targets if self.keep is None else mixture.sparsify(targets, self.keep)


def estimate(
    targets: DecodedTargets | SparseTargets,
    spec: TargetSpec,
    num_classes: int,
    temperature: float,
    tail: str = "uniform",
    loss: str = "kd",
) -> float:
    """Estimate the relative error of a late student's gradient, over all views.

    Args:
        targets: Sparse targets of some views.
        spec: Their declared temperatures and levels.
        num_classes: C.
        temperature: T of the student.
        tail: "uniform", "bucket" or "zero".
        loss: "kd", "dkd" or "dist".
    """
    beta = 1.0 / temperature
    p_BK = targets.probability_BK.astype(np.float64)
    none_B = (p_BK > 0).sum(axis=1) >= num_classes
    n_B = np.maximum(num_classes - (p_BK > 0).sum(axis=1), 1)
    known = [(0.0, np.log(n_B))]
    tail_BT = np.clip(targets.tail_BT.astype(np.float64), 1e-30, 1.0 - 1e-9)
    for t, mass_B in zip(spec.temperatures, tail_BT.T, strict=True):
        odds_B = mass_B / (1.0 - mass_B)
        known.append((1.0 / t, np.log(dense.temper(p_BK, t).sum(axis=1) * odds_B)))
    least_B = np.where(p_BK > 0, p_BK, 1.0).min(axis=1)
    even_B = np.log(tail_BT[:, 0] ** 2 / n_B)
    square_B = even_B + _WITHIN * np.maximum(np.log(n_B * least_B / tail_BT[:, 0]), 0.0)
    if targets.square_BQ.size:
        square_B = np.log(np.maximum(targets.square_BQ[:, 0].astype(np.float64), 1e-30))
    known.append((2.0, square_B))
    raw_BK = dense.temper(p_BK, temperature)
    dropped_B, square_B = (
        np.where(none_B, 0.0, np.exp(_parabola(known, x))) for x in (beta, 2 * beta)
    )
    z_B = raw_BK.sum(axis=1) + dropped_B
    kept_BK, m_B = raw_BK / z_B[:, None], dropped_B / z_B
    s_B = np.maximum(square_B / z_B**2, m_B**2 / n_B)
    ratio_B, u_B = np.ones_like(m_B), m_B / n_B
    if tail == "zero":
        ratio_B, u_B = 1.0 / (1.0 - m_B), np.zeros_like(m_B)
    elif temperature not in spec.temperatures:
        flat_B = np.where(none_B, 0.0, (tail_BT[:, 0] / n_B) ** beta)
        other_B = raw_BK.sum(axis=1) + n_B * flat_B
        ratio_B, u_B = z_B / other_B, flat_B / other_B
    if loss == "dkd":
        rest_B = np.maximum(1.0 - kept_BK.max(axis=1), 1e-30)
        kept_BK = np.where(kept_BK == kept_BK.max(axis=1, keepdims=True), 0.0, kept_BK)
        kept_BK, m_B, u_B, s_B = (
            kept_BK / rest_B[:, None],
            m_B / rest_B,
            u_B / rest_B,
            s_B / rest_B**2,
        )
    code_BK = np.maximum(spec.levels * p_BK**0.25, 1.0)
    rounding_BK = np.where(code_BK < 1.5, 1.0, np.minimum(4.0 / 3.0 * (beta / code_BK) ** 2, 1.0))
    two_B, three_B = (kept_BK**2).sum(axis=1), (kept_BK**3).sum(axis=1)
    error_B = two_B * (ratio_B - 1.0) ** 2 + (rounding_BK * kept_BK**2).sum(axis=1)
    if tail == "bucket":
        share_B = n_B * u_B / np.maximum(m_B, 1e-30)
        error_B += s_B * ((1.0 - share_B) ** 2 + (beta * share_B) ** 2)
    else:
        error_B += s_B - 2.0 * u_B * m_B + n_B * u_B**2
    two_B = two_B + s_B
    gradient_B = beta**2 * (two_B - 2.0 * three_B + two_B**2)
    error = float(np.sqrt(error_B.sum() / max(gradient_B.sum(), 1e-30)))
    return _DIST * error if loss == "dist" else error


def cosine(error: float, tail: str = "uniform") -> float:
    """Cosine of the gradients with and without an estimated relative error."""
    if tail == "bucket":
        return float(np.sqrt(max(1.0 - error**2, 0.0)))
    return float(1.0 / np.sqrt(1.0 + error**2))


def shortfalls(
    targets: DecodedTargets,
    spec: TargetSpec,
    num_classes: int,
    uses: Iterable[Use],
    cache: str,
) -> list[str]:
    """Describe what some uses of targets require beyond what is stored, each kind once.

    Args:
        targets: Targets of some views, as they are stored.
        spec: Their declared temperatures and levels.
        num_classes: C.
        uses: Students, or cuts.
        cache: Name of the cache, for the command that finds a setting.
    """
    found = [use for use in dict.fromkeys(uses) if use.of(targets).tail_BT.any()]
    declared, lines = ", ".join(f"{t:g}" for t in spec.temperatures), []
    if zero := [use for use in found if use.tail == "zero" and use.highest > 1]:
        lines.append(
            f"tail=zero at T = {max(use.highest for use in zero):g} leaves out the classes that "
            "are not kept, which have much of the mass there. Pass tail=uniform or tail=bucket "
            "above T = 1."
        )
    between = [use for use in found if use.begin != use.end or use.begin not in spec.temperatures]
    if flat := [use for use in between if use.tail != "zero"]:
        listed = "; ".join(dict.fromkeys(use.temperatures for use in flat))
        more = sorted({*spec.temperatures, *(t for use in flat for t in (use.begin, use.end))})
        lines.append(
            f"T = {listed}, and the targets have the mass of their tail at T = {declared} alone: "
            "at any other T the tail is taken as flat. Declare it in the cache's recipe: "
            f"targets.temperatures={more}."
        )

    def error(use: Use) -> float:
        few = use.of(targets)
        each = {use.begin, use.end}
        stored = few, spec, num_classes
        return max(estimate(*stored, t, use.tail, use.loss) for t in each)

    errors = {use: error(use) for use in found if use not in zero}
    if short := [use for use, value in errors.items() if value > LIMIT]:
        listed = "; ".join(
            f"T = {use.temperatures}{f' with {use.few}' if use.few else ''} "
            f"({math.floor(100 * cosine(errors[use], use.tail)) / 100:.2f})"
            for use in short
        )
        worst = max(short, key=lambda use: errors[use])
        remedy = next((text for text, other in _others(worst) if error(other) <= LIMIT), "")
        expected = math.ceil(100 * cosine(LIMIT)) / 100
        lines.append(
            f"the targets keep too few classes for {listed}: in brackets the estimated cosine of a "
            f"late student's gradient with that of full targets, expected {expected:.2f} or more. "
            f"{f'Pass {remedy}; or find' if remedy else 'Find'} the smallest cache that suffices: "
            f"kdcache advise {cache} temperature={worst.highest:g}."
        )
    return lines


def _others(use: Use) -> Iterator[tuple[str, Use]]:
    """Yield settings of a student or cut that may suffice, nearest first."""
    for tail in ("uniform", "bucket") if use.loss == "kd" else ():
        yield f"tail={tail}", replace(use, tail=tail)
    if use.keep is not None:
        name, count = use.few.split("=")[0], use.keep.k_max
        for k in (count * step for step in (2, 4, 8, 16)):
            yield f"{name}={k}", replace(use, keep=replace(use.keep, k_max=k, k_min=k, tau=0.0))
        yield f"no {name}", replace(use, keep=None)


def _parabola(known: Sequence[tuple[float, F8]], x: float) -> F8:
    """Interpolate between the three known points nearest to x; two make a line."""
    nearest = sorted(dict(known).items(), key=lambda point: abs(point[0] - x))[:3]
    total = np.zeros_like(nearest[0][1])
    for i, (a, value_B) in enumerate(nearest):
        others = [b for j, (b, _) in enumerate(nearest) if j != i]
        total += value_B * np.prod([(x - b) / (a - b) for b in others])
    return total
