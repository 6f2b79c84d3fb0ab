"""Confusion counts: predictions by pairs of classes.

Shapes: B images.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
from torch import Tensor

OnPrediction = Callable[[str, str, Tensor, Tensor], None]
"""Called with a data set's name, a network's name, expected classes [B], predicted classes [B]."""
Pairs = Counter[tuple[int, int]]
"""Number of predictions by (expected class, predicted class)."""


class Confusions:
    """Pairs of classes by data set and network; memory grows with the pairs that occur."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], Pairs] = {}
        """Pairs by (data set, network)."""

    def __call__(self, dataset: str, name: str, expected_B: Tensor, predicted_B: Tensor) -> None:
        """Count predictions; those without an expected class (a label below 0) are skipped."""
        both = np.stack([expected_B.cpu().numpy(), predicted_B.cpu().numpy()])
        found, times = np.unique(both[:, both[0] >= 0], axis=1, return_counts=True)
        counted = zip(*found.tolist(), strict=True)
        pairs = self.pairs.setdefault((dataset, name), Counter())
        pairs.update(dict(zip(counted, times.tolist(), strict=True)))
