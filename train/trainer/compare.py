"""Distillation against labels: the same student, starts, views and order; the difference in points.

RUN/kd-seed0/ … RUN/labels-seed2/     the runs
RUN/comparison.json                   accuracies, paired gains, their mean and standard error
RUN/comparison.png                    the same, to look at
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cache_tools.storage import atomic

COLORS = {"kd": 0, "labels": 1}
"""Mode → number of its color in all charts that compare modes."""


def compare(
    top1: Mapping[str, Sequence[float]], seeds: Sequence[int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Compare the modes kd and labels with equal seeds, in pairs.

    The accuracies of each mode, in percent, are in the order of `seeds`; `facts` are kept beside
    the result.
    """
    gains = [a - b for a, b in zip(top1["kd"], top1["labels"], strict=True)]
    error = _deviation(gains) / math.sqrt(len(gains))
    arms: dict[str, Any] = {
        mode: {"top1": list(arm), "mean": fmean(arm), "deviation": _deviation(arm)}
        for mode, arm in top1.items()
    }
    gain = {"each": gains, "mean": fmean(gains), "standard_error": error}
    return {"seeds": list(seeds), **arms, "gain": gain, **facts}


def table(result: dict[str, Any]) -> str:
    """Format the comparison as lines of text."""
    gain, deviation = result["gain"], " ± deviation" if len(result["seeds"]) > 1 else ""
    lines = [f"{'seed':8}" + "".join(f"{s:>8}" for s in result["seeds"]) + f"    mean{deviation}"]
    for mode in ("labels", "kd"):
        arm = result[mode]
        values = "".join(f"{v:8.1f}" for v in arm["top1"])
        spread = plus_minus(arm["deviation"], result["seeds"])
        lines.append(f"{mode:8}{values}{arm['mean']:8.1f}{spread} % top-1")
    values = "".join(f"{v:+8.1f}" for v in gain["each"])
    error = plus_minus(gain["standard_error"], result["seeds"])
    lines.append(f"{'gain':8}{values}{gain['mean']:+8.1f}{error and f'{error} (standard error)'}")
    return "\n".join(lines)


def plus_minus(spread: float, seeds: Sequence[int]) -> str:
    """Format a spread over seeds; "" of a single one, which has none."""
    return f" ± {spread:.1f}" if len(seeds) > 1 else ""


def draw(result: dict[str, Any], title: str, path: Path) -> None:
    """Draw both arms, seed by seed, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    arms = [("labels only", "labels"), ("teacher's cache (KD)", "kd")]
    for pair in zip(result["labels"]["top1"], result["kd"]["top1"], strict=True):
        axes.plot([0, 1], pair, color="0.75", linewidth=1, zorder=1)
    for x, (_, mode) in enumerate(arms):
        arm, color = result[mode], f"C{COLORS[mode]}"
        axes.scatter([x] * len(arm["top1"]), arm["top1"], color=color, zorder=2, alpha=0.6)
        axes.errorbar(x, arm["mean"], arm["deviation"], fmt="D", color=color, capsize=6, zorder=3)
        outward = (24 * x - 12, -4)
        side = ("right", "left")[x]
        text = f"{arm['mean']:.1f} %"
        axes.annotate(text, (x, arm["mean"]), outward, textcoords="offset points", ha=side)
    axes.set_xticks([0, 1], [name for name, _ in arms])
    axes.set_xlim(-0.5, 1.5)
    bars = "\n(bars: standard deviation over seeds)" * (len(result["seeds"]) > 1)
    axes.set_ylabel(f"top-1 accuracy on validation, %{bars}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    gain = result["gain"]
    error = plus_minus(gain["standard_error"], result["seeds"])
    error += " (standard error)" * bool(error)
    axes.set_title(f"{title}\ngain {gain['mean']:+.1f} points{error}")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    atomic.write(path, picture.getvalue())


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    mean, others = fmean(values), max(len(values) - 1, 1)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / others)
