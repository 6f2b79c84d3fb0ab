"""Sparsity and precision of the stored targets: the classes kept, and what is kept of the rest."""

from dataclasses import dataclass
from typing import Annotated

from cache_tools.config import Range, check, check_ranges

MAX_KEPT = 65_534  # counts are u2, and 65535 is no legal value


@dataclass(frozen=True)
class TargetSpec:
    """Classes kept of a view, and what is stored of the rest."""

    k_max: Annotated[int, Range(1, MAX_KEPT)] = 64
    """Most classes kept of a view: the width K of the arrays."""
    tau: Annotated[float, Range(0, 1, "most")] = 0.001
    """Classes of at most this probability are dropped; 0 keeps k_max classes always."""
    k_min: Annotated[int, Range(1, MAX_KEPT)] = 1
    """Classes kept whatever their probability, at most k_max."""
    levels: Annotated[int, Range(7, 254)] = 127
    """Steps of the scale of probabilities: 63 costs 6 % fewer bytes, and precision."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures at which the mass of the dropped classes is stored: 1.0, and up to seven others
    within 0.1..100."""
    true_class: bool = False
    """Store the probability of the true class where it is not kept (of both labels of a mixed
    view); decoupled distillation requires it."""
    tail_square: bool = False
    """Store the sum of squares of the dropped classes; correlation losses (DIST) require it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check(self.k_min <= self.k_max, "k_min <= k_max must hold")
        check(self.temperatures[:1] == (1.0,), "temperatures must begin with 1.0")
        check(len(self.temperatures) <= 8, "at most 8 temperatures can be stored")
        check(all(0.1 <= t <= 100 for t in self.temperatures), "temperatures are in 0.1..100")
        check(len(set(self.temperatures)) == len(self.temperatures), "temperatures repeat")
