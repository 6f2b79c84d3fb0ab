"""Statistics of a cache: its targets, the teacher's accuracy, and the loss of the codec.

All are of committed parts. Memory is bounded for any size of cache: targets are read part by part,
of at most `limit` views, far apart; statistics in commit records cover all views.

Shapes: B views, T temperatures.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import F8
from cache_tools.report import augment_stats, target_stats
from cache_tools.report.augment_stats import AugmentStats
from cache_tools.report.target_stats import TargetStats
from cache_tools.runtime import progress
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store import info, sampling
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec

LIMIT = 100_000
BINS = 15
"""Bins of the calibration, as in `train.evaluate.metrics`."""
_GROUPS, _LEAST = 8, 25
"""Groups of views by strength, and minimum views of one."""
_PIECE = 2**22
"""Slots decoded at a time."""
_PERCENTS = np.arange(0, 101)


def facts(store: Cache, limit: int = LIMIT) -> dict[str, Any]:
    """Collect the statistics of a cache from the targets of at most `limit` views; 0: all.

    Raises:
        CacheDamaged: A part is damaged.
    """
    summary = info.info(store)
    found: dict[str, Any] = {"kind": "cache", "name": store.name, "info": summary}
    committed = [part for part in store.parts() if store.present(part)]
    if not committed:
        return {**found, "sampled": None}
    stats, augment, view_B = _sample(store, committed, limit or summary["targets"])
    spec = store.spec
    found["sampled"] = {"views": len(view_B), "of": summary["targets"]}
    most = math.log(spec.teacher.num_classes)
    found["entropy"] = _histogram(stats.entropy_B, 40, (0.0, most)) | {"most": most}
    found["kept_mass"] = _histogram(1.0 - stats.tail_BT[:, 0], 40)
    found["kept_classes"] = _counts(stats.kept_B)
    temperatures, levels = spec.targets.temperatures, spec.targets.levels
    found["lost"] = {
        "all_kept": bool((stats.tail_BT == 0).all()),
        "tail_mass": {
            f"{t:g}": _quantiles(stats.tail_BT[:, i]) for i, t in enumerate(temperatures)
        },
        "dropped_kl_at_most": _quantiles(stats.dropped_B),
        "rounded_kl_about": _mean_and_quantiles(stats.rounded_B),
        "half_step": {f"{p:g}": 2 / (levels * p**0.25) for p in (1.0, 0.1, 0.01, 0.001)},
    }
    known_B = augment.label_B != NO_LABEL
    hit_B = stats.first_B == augment.label_B
    found["mixed"] = bool(spec.replayable and spec.views.mixes)
    if not known_B.any():
        return found | {"calibration": None, "by_view": None, "by_strength": {}, "by_operation": []}
    hit_B, right = hit_B[known_B], stats.confidence_B[known_B]
    found["calibration"] = _calibration(right, hit_B)
    found["by_view"] = _by_view(store, committed, view_B[known_B], hit_B)
    found["by_strength"] = _by_strength(augment, known_B, hit_B)
    by_operation = []
    for name, had_B in augment_stats.names(augment.operations_B[known_B]).items():
        if not had_B.all():
            without = 100 * float(hit_B[~had_B].mean())
            by_operation.append({"operation": name, **_top1(hit_B[had_B]), "top1_without": without})
    found["by_operation"] = sorted(by_operation, key=lambda one: float(one["top1"]))
    return found


def _sample(
    store: Cache, committed: Sequence[Part], limit: int
) -> tuple[TargetStats, AugmentStats, NDArray[np.int64]]:
    """Read statistics of some views, and their view numbers."""
    spec, piece = store.spec, max(1, _PIECE // store.spec.targets.k_max)
    selected = sampling.sample_views(spec, committed, limit)
    stats, augment, numbers = [], [], []
    label = f"read targets of {store.name}"
    with progress.bar(label, sum(len(rows) for _, rows in selected), "views") as advance:
        for part, rows in selected:
            stored, first = store.read(part)[0], spec.rows(part.block).start
            for begin in range(0, len(rows), piece):
                row_B = rows[begin : begin + piece]
                targets = codec.decode(stored, spec.targets, row_B - first)
                stats.append(target_stats.measure(targets, spec.targets, spec.teacher.num_classes))
                augment.append(augment_stats.measure(store, part, row_B))
                numbers.append(np.full(len(row_B), part.view))
                advance(len(row_B))
    found = field_arrays.concatenate(stats), field_arrays.concatenate(augment)
    return *found, np.concatenate(numbers)


def _histogram(
    values_B: F8, bins: int, bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Count values between edges, with mean and quantiles."""
    low, high = bounds or (float(values_B.min()), float(values_B.max()))
    counts, edges = np.histogram(np.clip(values_B, low, high), bins, (low, max(high, low + 1e-9)))
    return {"edges": edges.tolist(), "counts": counts.tolist(), **_mean_and_quantiles(values_B)}


def _counts(kept_B: NDArray[np.int64]) -> dict[str, Any]:
    """Count views by kept classes, in at most some forty bars of whole numbers."""
    low, high = int(kept_B.min()), int(kept_B.max())
    width = max(1, math.ceil((high - low + 1) / 40))
    edges = np.arange(low, high + 1 + width, width) - 0.5
    counts, _ = np.histogram(kept_B, edges)
    bars = {"edges": edges.tolist(), "counts": counts.tolist()}
    return bars | {"least": low, "most": high, **_mean_and_quantiles(kept_B)}


def _mean_and_quantiles(values_B: NDArray[Any]) -> dict[str, float]:
    """Return mean, median and 99th percentile."""
    median, high = np.percentile(values_B, [50, 99])
    return {"mean": float(values_B.mean()), "median": float(median), "p99": float(high)}


def _quantiles(values_B: F8) -> dict[str, Any]:
    return _mean_and_quantiles(values_B) | {
        "percentiles": np.percentile(values_B, _PERCENTS).tolist()
    }


def _calibration(confidence_B: F8, hit_B: NDArray[np.bool_]) -> dict[str, Any]:
    """Compute accuracy by confidence, and the expected calibration error in percent."""
    bin_B = np.clip(np.ceil(confidence_B * BINS).astype(np.int64), 1, BINS) - 1
    count, sums, hits = (
        np.bincount(bin_B, weights, BINS) for weights in (None, confidence_B, hit_B)
    )
    bins = [
        {"views": int(n), "confidence": float(c / n), "accuracy": float(h / n)}
        for n, c, h in zip(count, sums, hits, strict=True)
        if n
    ]
    return {
        "views": len(hit_B),
        "top1": 100 * float(hit_B.mean()),
        "confidence": 100 * float(confidence_B.mean()),
        "ece": 100 * float(np.abs(sums - hits).sum()) / len(hit_B),
        "bins": bins,
    }


def _by_view(
    store: Cache, committed: Sequence[Part], view_B: NDArray[np.int64], hit_B: NDArray[np.bool_]
) -> dict[str, Any]:
    """Compute accuracy per view number: of all views if recorded, else of the sample."""
    records = [store.record(part) for part in committed]
    if all("teacher_top1" in record["statistics"] for record in records):
        number = np.array([part.view for part in committed])
        weight = np.array([r["rows"][1] - r["rows"][0] for r in records], dtype=np.float64)
        hits = weight * np.array([r["statistics"]["teacher_top1"] / 100 for r in records])
    else:
        number, weight, hits = view_B, np.ones(len(view_B)), hit_B.astype(np.float64)
    of_view = np.bincount(number, weight, store.num_views)
    right = np.bincount(number, hits, store.num_views)
    seen = np.flatnonzero(of_view)
    errors = [_error(r, n) for r, n in zip(right[seen], of_view[seen], strict=True)]
    return {
        "all_views": number is not view_B,
        "view": seen.tolist(),
        "views": of_view[seen].astype(int).tolist(),
        "top1": (100 * right[seen] / of_view[seen]).tolist(),
        "error": errors,
    }


def _by_strength(
    augment: AugmentStats, known_B: NDArray[np.bool_], hit_B: NDArray[np.bool_]
) -> dict[str, Any]:
    """Compute accuracy in equal groups of each strength that varies; none of few views."""
    if len(hit_B) < 2 * _LEAST:
        return {}
    kinds = {
        "crop_area": augment.area_B,
        "turn_degrees": augment.turn_B,
        "erased_area": augment.erased_B,
        "own_share": augment.share_B,
    }
    varies = {name: values[known_B] for name, values in kinds.items() if np.ptp(values) > 1e-6}
    return {name: _groups(values, hit_B) for name, values in varies.items()}


def _groups(values_B: F8, hit_B: NDArray[np.bool_]) -> list[dict[str, float]]:
    count = min(_GROUPS, len(values_B) // _LEAST)
    edges = np.unique(np.quantile(values_B, np.linspace(0, 1, count + 1)))
    group_B = np.clip(np.searchsorted(edges, values_B, side="right") - 1, 0, len(edges) - 2)
    members = [(group_B == g) for g in range(len(edges) - 1)]
    return [{"mean": float(values_B[m].mean()), **_top1(hit_B[m])} for m in members if m.any()]


def _top1(hit_B: NDArray[np.bool_]) -> dict[str, float]:
    """Return accuracy and its standard error in percent."""
    error = _error(float(hit_B.sum()), len(hit_B))
    return {"views": len(hit_B), "top1": 100 * float(hit_B.mean()), "error": error}


def _error(hits: float, count: float) -> float:
    """Return the standard error of a share in percent, smoothed for few views."""
    share = (hits + 1) / (count + 2)
    return 100 * math.sqrt(share * (1 - share) / count)
