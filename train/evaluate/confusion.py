"""Confusion counts: predictions by pairs of classes.

Shapes: B images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cache_tools.spec import class_names
from cache_tools.spec.class_names import Names

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


def most_frequent(pairs: Pairs, names: Names, most: int) -> list[dict[str, Any]]:
    """List the most frequent wrong predictions, with their share of the expected class in %."""
    total: Counter[int] = Counter()
    for (expected, _), times in pairs.items():
        total[expected] += times
    wrong = Counter({pair: times for pair, times in pairs.items() if pair[0] != pair[1]})
    return [
        {"due": names(a), "answer": names(b), "times": times, "share": 100 * times / total[a]}
        for (a, b), times in wrong.most_common(most)
    ]


def names_of(config: dict[str, Any] | None, named: Sequence[str], num_classes: int) -> Names:
    """Return the names of a student's classes: its run's, those of images, or ImageNet's."""
    run = config or {}
    mapped = run.get("teacher", {}).get("class_map_sha256")
    unnamed = () if mapped else class_names.synsets(num_classes)
    return class_names.names(run.get("class_names") or named or unnamed, num_classes)
