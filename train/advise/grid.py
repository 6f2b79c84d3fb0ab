"""Grid of sparsities: bytes per view and gradients of each, and the cheapest under an error.

Bytes are measured: the codec's targets, compressed as the chunks of one part, of at most one view
of a sample, since views of a sample resemble each other. Below 256 of them the estimate of
`codec.expected_bytes` takes their place.

Shapes: B views, P labels of a view.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cache_tools.runtime import progress
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store.layout import Layout
from cache_tools.targets import codec, dense
from cache_tools.targets.codec import EncodedTargets
from train.advise.gradients import Comparison, Gradients
from train.advise.sample import Sample
from train.recipe import Tail, TrainRecipe

TAUS = (0.0, 1e-2, 1e-3, 1e-4)
K_MAX = (10, 20, 50, 100, 200, 500)
LEVELS = (63, 127)
TAILS: tuple[Tail, ...] = ("uniform", "bucket", "zero")
ENOUGH = 256
"""Views from which bytes are measured."""


@dataclass(frozen=True)
class Grid:
    """Values of a grid."""

    taus: Sequence[float] = TAUS
    k_max: Sequence[int] = K_MAX
    levels: Sequence[int] = LEVELS
    tails: Sequence[Tail] = TAILS
    """Tail models, of which losses other than kd have "uniform" alone."""


@dataclass(frozen=True)
class Row:
    """A sparsity and a tail model, measured."""

    targets: TargetSpec
    """Sparsity of the cache."""
    tail: Tail
    """Tail model of the student."""
    own: bool
    """True for the sparsity of the cache or recipe itself."""
    kept: float
    """Classes kept per view."""
    bytes_per_view: float
    """Compressed bytes of a view."""
    untrained: Comparison
    """Gradients of an untrained student."""
    late: Comparison
    """Gradients of a late student."""

    @property
    def error(self) -> float:
        """The larger relative error of both students."""
        return max(self.untrained.error, self.late.error)

    @property
    def keys(self) -> str:
        """Keys of both recipes."""
        spec = self.targets
        words = [f"targets.{name}={getattr(spec, name)}" for name in ("tau", "k_max", "levels")]
        words.append(f"targets.temperatures={list(spec.temperatures)}")
        words += [f"targets.{n}=true" for n in ("true_class", "tail_square") if getattr(spec, n)]
        return " ".join([*words, f"tail={self.tail}"])

    @property
    def facts(self) -> dict[str, Any]:
        """Contents in JSON."""
        return {**asdict(self), "error": self.error, "keys": self.keys}


def measure(sample: Sample, recipe: TrainRecipe, own: TargetSpec, grid: Grid) -> list[Row]:
    """Measure every setting of a grid, and the sparsity `own` at first.

    A larger k_max is left out where a smaller one keeps the same classes.
    """
    classes, gradients = sample.logits_BC.shape[1], Gradients(sample, recipe)
    tails = [tail for tail in grid.tails if recipe.loss == "kd" or tail == "uniform"]
    ks = sorted({min(k, classes) for k in grid.k_max})
    rows = list[Row]()
    own = replace(own, k_max=min(own.k_max, classes), k_min=min(own.k_min, classes))
    with progress.bar("advise", 1 + len(grid.taus) * len(ks) * len(grid.levels), "settings") as bar:

        def add(spec: TargetSpec, stored: EncodedTargets, of: Sequence[Tail]) -> None:
            size = bytes_per_view(sample, stored, spec)
            for tail in of:
                both = gradients.compare(stored, spec, tail)
                kept = len(stored.code_E) / len(stored)
                rows.append(Row(spec, tail, spec is own, kept, size, **both))
            bar(1)

        [(_, stored)] = _encoded(sample, own, [own.levels])
        add(own, stored, [recipe.tail])
        base = TargetSpec(
            temperatures=tuple(dict.fromkeys((1.0, gradients.temperature))),
            true_class=recipe.loss == "dkd",
            tail_square=recipe.loss == "dist",
        )
        for tau in sorted(set(grid.taus)):
            for number, k in enumerate(ks, 1):
                spec = replace(base, tau=tau, k_max=k, k_min=1 if tau else k)
                for one, stored in _encoded(sample, spec, grid.levels):
                    add(one, stored, tails)
                if tau and stored.count_B.max() < k:
                    bar(len(grid.levels) * (len(ks) - number))
                    break
    return rows


def is_measured(sample: Sample) -> bool:
    """Return True if bytes are measured: the sample is large enough."""
    return len(np.unique(sample.row_B)) >= ENOUGH


def bytes_per_view(sample: Sample, stored: EncodedTargets, spec: TargetSpec) -> float:
    """Measure the compressed bytes of a view, or estimate them of a small sample."""
    classes, kept = sample.logits_BC.shape[1], len(stored.code_E) / len(stored)
    if not is_measured(sample):
        return codec.expected_bytes(classes, kept, spec)
    first_B = np.unique(sample.row_B, return_index=True)[1]
    views = ViewSpec(size=32, mixup=float(sample.label_BP.shape[1] > 1))
    dataset = DatasetSpec(len(first_B), classes, True, "stem", "")
    teacher = TeacherSpec("sample", "", "", classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    layout = Layout(CacheSpec(dataset, teacher, views, spec, len(first_B)), 1)
    few, probes = codec.select_rows(stored, first_B), np.zeros(4, np.uint64)
    chunks = layout.encode_part(0, 0, few, probes)
    counted = [chunk for name, chunk in chunks.items() if name.startswith("targets/")]
    return sum(map(len, counted)) / len(first_B)


def cheapest(rows: Sequence[Row], error: float) -> Row | None:
    """Find the setting of fewest bytes whose relative error is at most `error`."""
    good = [row for row in rows if row.error <= error]
    return min(good, key=lambda row: (row.bytes_per_view, row.error), default=None)


def front(rows: Sequence[Row]) -> list[Row]:
    """Select the settings that no other beats in both bytes and error, by ascending bytes."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.bytes_per_view, row.error)):
        if not found or row.error < found[-1].error:
            found.append(row)
    return found


def _encoded(
    sample: Sample, spec: TargetSpec, levels: Sequence[int]
) -> Iterator[tuple[TargetSpec, EncodedTargets]]:
    """Encode the sample at each number of levels."""
    sparse = dense.sparsify(sample.logits_BC, spec, sample.label_BP)
    for count in levels:
        one = spec if count == spec.levels else replace(spec, levels=count)
        yield one, codec.encode(sparse, one, sample.logits_BC.shape[1])
