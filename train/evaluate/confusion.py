"""Who takes what for what: answers counted by pairs of classes.

Shapes: B pictures.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
from torch import Tensor

Saw = Callable[[str, str, Tensor, Tensor], None]
"""Is told: a place, a network's name, [B] the classes that were due, [B] those it named."""
Pairs = Counter[tuple[int, int]]
"""(class that was due, class that was answered) → how often."""


class Confusions:
    """Pairs of classes by place and network; memory goes with the pairs that occur."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], Pairs] = {}
        """(place, network) → its pairs."""

    def __call__(self, where: str, name: str, due_B: Tensor, answer_B: Tensor) -> None:
        """Count answers; those to which nothing was due (a label below 0) do not count."""
        both = np.stack([due_B.cpu().numpy(), answer_B.cpu().numpy()])
        found, times = np.unique(both[:, both[0] >= 0], axis=1, return_counts=True)
        counted = zip(*found.tolist(), strict=True)
        of = self.pairs.setdefault((where, name), Counter())
        of.update(dict(zip(counted, times.tolist(), strict=True)))
