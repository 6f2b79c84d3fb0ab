"""Runs beside each other, and the paired comparison of distillation with labels."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cache_tools.report import charts, svg
from cache_tools.report.formatting import count, listed, share
from cache_tools.report.page import Element, Facts, Group, Section, Table
from cache_tools.report.svg import Chart, chart
from cache_tools.runtime.text import printable
from train import run_dir
from train.report import history
from train.report.run_section import way
from train.trainer import compare

NAME = "comparison.json"
MOST = 40
"""Runs that a chart names."""
_OTHERS = "others"


def facts(path: str) -> Facts:
    """Read the comparison of the runs in a folder."""
    return {"kind": "comparison", "name": path, **run_dir.read_json(Path(path) / NAME)}


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names of runs without what all of them have in common."""
    whole = [folder.resolve() for folder in folders]
    if len(whole) < 2:
        return [printable("/".join(folder.parts[-2:])) for folder in whole]
    common = os.path.commonpath([folder.parent for folder in whole])
    return [printable(str(folder.relative_to(common))) for folder in whole]


def section(runs: Sequence[Facts], names: Sequence[str]) -> Section:
    """Several runs in one table and beside each other in charts."""
    named = dict(zip(names, runs, strict=True))
    rows = [_row(name, run) for name, run in named.items()]
    head = ("run", "student", "learns", "top-1", "EMA", "best", "agrees", "KL", "images/s", "waits")
    found: list[Element] = [one for one in (_results(named), _curves(named)) if one is not None]
    table = Table(
        "Runs", head, rows,
        "Top-1 on the validation split; agreement and KL(teacher ‖ student) on cached views, of "
        "the moving average where there is one.",
        words=3,
    )  # fmt: skip
    top1 = {name: top for name, run in named.items() if (top := _top1(run)) is not None}
    lead = "None of them is finished and measured."
    if top1:
        best, worst = max(top1, key=lambda name: top1[name]), min(top1, key=lambda name: top1[name])
        lead = (
            f"{len(top1)} are finished and measured: {share(top1[worst])} ({worst}) to "
            f"{share(top1[best])} ({best})."
        )
    return Section(f"{len(runs)} runs", "comparison", lead, [Group("", [*found, table])])


def against_labels(run: Facts, name: str) -> Section:
    """Show RUN/comparison.json: the same starts, views and order, with either target."""
    gain, arms = run["gain"], (run["labels"], run["kd"])
    error, seeds = compare.plus_minus(gain["standard_error"], run["seeds"]), len(run["seeds"])
    over = f"points (standard error over {seeds} seeds)" if error else "points with one seed"
    words = (
        f"{run['student']} on {count(run['transfer_images'])} images: {arms[0]['mean']:.1f} % "
        f"from labels, {arms[1]['mean']:.1f} % from {run['teacher']}. "
        f"Gain {gain['mean']:+.1f}{error} {over}."
    )

    def draw(axes: Any) -> None:
        for pair in zip(*(arm["top1"] for arm in arms), strict=True):
            axes.plot([0, 1], pair, color=svg.PALE, linewidth=1, alpha=0.6)
        for x, (mode, arm) in enumerate(zip(("labels", "kd"), arms, strict=True)):
            color = charts.PAGE.color(compare.COLORS[mode])
            axes.scatter([x] * len(arm["top1"]), arm["top1"], color=color, zorder=3)
            axes.plot([x - 0.14, x + 0.14], [arm["mean"]] * 2, color=color, linewidth=3)
        axes.set_xticks([0, 1], ["labels", "teacher's cache"])
        axes.set(xlim=(-0.5, 1.5), ylabel="top-1, %")

    each = ", ".join(f"{value:+.1f}" for value in gain["each"])
    picture = chart(
        "Labels against the teacher's cache",
        f"Gains by seed: {each} points, on average {gain['mean']:+.1f}. Bars are means; lines join "
        "the runs of one seed, which have the same start, views and order.",
        draw,
    )
    return Section(
        f"{name}: distillation against labels", "comparison", words, [Group("", [picture])]
    )


def _top1(run: Facts) -> float | None:
    result = run["result"] or {}
    ema = result.get("top1_ema")
    return result.get("top1") if ema is None else ema


def _row(name: str, run: Facts) -> list[str]:
    result, recipe = run["result"] or {}, run["config"]["recipe"]
    seen = (run["measured"] or {}).get("cache") or {"networks": {}}
    students = [v for k, v in seen["networks"].items() if k != "teacher"]
    of = students[-1] if students else {"agreement": None, "kl": None}
    return [
        name,
        recipe["student"],
        way(run["config"]),
        *(share(result.get(key)) for key in ("top1", "top1_ema", "top1_best")),
        share(of["agreement"]),
        "–" if of["kl"] is None else f"{of['kl']:.4f}",
        count(result["images_per_second"]) if result else run["state"],
        share(100 * result["data_wait"]) if result else "–",
    ]


def _results(named: dict[str, Facts]) -> Chart | None:
    found = {name: top for name, run in named.items() if (top := _top1(run)) is not None}
    if len(found) < 2:
        return None
    ordered = sorted(found, key=lambda name: -found[name])
    shown, arms = ordered[:MOST], _arms(named)
    if len(arms) > len(svg.SERIES):
        arms = list(dict.fromkeys(map(_arm, ordered)))
    values = [found[name] for name in shown]

    def draw(axes: Any) -> None:
        rows = range(len(shown))
        for row, name in zip(rows, shown, strict=True):
            number = arms.index(_arm(name))
            color = charts.PAGE.color(number) if number < len(svg.SERIES) else svg.PALE
            axes.plot(found[name], row, "o", color=color)
            axes.annotate(f"{found[name]:.1f}", (found[name], row), (6, -3), fontsize=8.5,
                          textcoords="offset points")  # fmt: skip
        axes.set_yticks(rows, [charts.short(name) for name in shown])
        axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="top-1 at the end, %")
        axes.set_xlim(max(0.0, min(values) - 5), max(values) + 3)

    best, last = ordered[0], ordered[-1]
    return chart(
        "Accuracy at the end" + (f", the best {MOST}" if len(ordered) > MOST else ""),
        f"Of {count(len(ordered))} runs {best} is the best with {found[best]:.1f} %, {last} the "
        f"last with {found[last]:.1f} %.",
        draw,
        charts.row_size(len(shown)),
    )


def _curves(named: dict[str, Facts]) -> Chart | None:
    series = {}
    for name, run in named.items():
        key = "top1_ema" if any("top1_ema" in row for row in run["epochs"]) else "top1"
        x, y = history.column(run["epochs"], "epoch", key)
        if x:
            series[name] = ([epoch + 1 for epoch in x], y)
    if len(series) < 2:
        return None
    best = sorted(series, key=lambda name: -series[name][1][-1])
    arms = _arms(series)
    if len(arms) > len(svg.SERIES):
        leading = list(dict.fromkeys(_arm(name) for name in best))[: len(svg.SERIES) - 1]
        arms = [*leading, _OTHERS]
    groups = {name: _arm(name) if _arm(name) in arms else _OTHERS for name in series}
    ordered = sorted(series, key=lambda name: arms.index(groups[name]))

    def draw(axes: Any) -> None:
        charts.lines(axes, {n: series[n] for n in ordered}, charts.EPOCH, "top-1, %", groups)

    each = [f"{name} {series[name][1][0]:.1f} to {series[name][1][-1]:.1f} %" for name in best]
    size = svg.SIZE[0], svg.SIZE[1] + 0.15 * len(arms)  # the legend has a line for each
    return chart("Accuracy over the epochs", f"{listed(each)}.", draw, size)


def _arms(names: Iterable[str]) -> list[str]:
    """Return the arms in the order of their colors: kd and labels as in their comparison."""
    found = dict.fromkeys(map(_arm, names))
    last = len(compare.COLORS)
    return sorted(found, key=lambda arm: compare.COLORS.get(arm.rpartition("/")[2], last))


def _arm(name: str) -> str:
    """Return a run's name without its seed: runs of one arm have one color."""
    return re.sub(r"[-,_]?seed=?\d+$", "", name) or name
