"""Results of a sweep: accuracy against size, speed and time, along each key, and its table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.report import charts, svg
from cache_tools.report.formatting import brief, count, listed, share, small
from cache_tools.report.page import Element, Facts, Group, Paragraph, Section, Table
from cache_tools.report.svg import Chart, chart
from cache_tools.runtime.text import counted
from cache_tools.store import info
from cache_tools.store.cache import Cache
from train import run_dir
from train.report.cost import table
from train.sweep import plot
from train.sweep.table import format_value, headers, pareto_front

NAME = "sweep.json"
_COLUMNS = {
    "accuracy": share,
    "loss": small,
    "parameters": count,
    "images_per_second": count,
    "cost_seconds": small,
}
_HEADS = ("top-1", "loss", "parameters", "images/s", "seconds")


def facts(folder: Path) -> Facts:
    """Collect the facts of a sweep, and the bytes of its cache if that is still there.

    Raises:
        UsageError: The file is none of a sweep's.
    """
    sweep = run_dir.read_json(folder / NAME)
    students = sweep.get("students")
    if not isinstance(students, list) or not all(isinstance(s, dict) for s in students):
        raise UsageError(f"{folder / NAME} lists no students. Run kdcache sweep again to write it.")
    plain = [
        {k: v if isinstance(v, str | int | float | None) else str(v) for k, v in one.items()}
        for one in students
    ]
    found = {**sweep, "students": plain, "cache": _cache(folder, students)}
    return {"kind": "sweep", "name": str(folder), **found}


def section(sweep: Facts) -> Section:
    """Build the section of a sweep."""
    students, swept = sweep["students"], [*sweep.get("swept", [])]
    measured = [one for one in students if _number(one.get("accuracy")) is not None]
    keys = plot.varied(measured, swept)
    by = keys[0] if keys else "name"
    costs_of = {key: [one for one in measured if _number(one.get(key))] for key in plot.AGAINST}
    fronts: list[Element] = [_against(r, key, by) for key, r in costs_of.items() if len(r) > 1]
    few = Paragraph("Fewer than two students are measured: there is nothing to compare.")
    groups = [Group("Accuracy against what it takes", fronts or [few])]
    along = [_along(measured, key, by) for key in keys]
    if along:
        lead = "Every point is a student; diamonds are means over all other keys."
        groups.append(Group("Along each swept key", along, lead))
    groups.append(Group("All students", [_table(students, headers(students, swept))]))
    if (costs := sweep.get("ledger")) and costs.get("students"):
        groups.append(Group("What it cost", [table(costs, sweep["cache"])]))
    return Section(sweep["name"], "sweep", _lead(students, measured, swept), groups)


def _cache(folder: Path, students: Sequence[Facts]) -> Facts | None:
    """Return location and bytes of the first student's cache; None if it is gone."""
    for one in students:
        name = str(one.get("name"))
        if Path(name).name != name:  # a student's folder lies in its sweep's
            continue
        try:
            path = run_dir.read_config(folder / name)["cache"]
            places = path if isinstance(path, list) else [path]
            if not all(Path(place).is_dir() for place in places):
                continue
            sizes = [info.info(Cache.open(place))["bytes"] for place in places]
        except (KdcacheError, OSError, KeyError):
            continue
        return {"path": path, "bytes": sum(sizes)}
    return None


def _lead(students: list[Facts], measured: list[Facts], swept: list[str]) -> str:
    states = [str(one.get("state")) for one in students]
    words = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    over = f" over {', '.join(swept)}" if swept else ""
    text = f"{counted(len(students), 'student')}{over}: {words}."
    if measured:
        best = max(measured, key=lambda one: one["accuracy"])
        text += f" The most accurate is {best.get('name')} with {share(best['accuracy'])}."
    return text


def _against(rows: list[Facts], key: str, by: str) -> Chart:
    name, label, more = plot.AGAINST[key]
    best = pareto_front(rows, key, more)
    words = listed([f"{share(one['accuracy'])} at {brief(one[key])}" for one in best])

    def draw(axes: Any) -> None:
        plot.against(axes, rows, key, by, charts.PAGE)
        plot.legend(axes, rows, by, charts.PAGE)

    return chart(
        f"Accuracy against {name}",
        f"{len(best)} of {len(rows)} students are beaten by no other in both: {words} ({label}).",
        draw,
        (svg.SIZE[0], svg.SIZE[1] + 0.3),
    )


def _along(rows: list[Facts], key: str, by: str) -> Chart:
    """Chart accuracy along a key: numbers from left to right, words from top to bottom."""
    values, numbers = plot.values_of(rows, key)
    means = plot.means(rows, key)
    words = listed([f"{format_value(value)}: {means[value]:.1f} %" for value in values])
    return chart(
        f"Along {key}",
        f"Means by {key}: {words}.",
        lambda axes: plot.along(axes, rows, key, by, charts.PAGE, upright=numbers),
        svg.SIZE if numbers else charts.row_size(len(values)),
    )


def _table(students: list[Facts], swept: list[str]) -> Table:
    ordered = sorted(students, key=lambda one: -(_number(one.get("accuracy")) or -1.0))
    rows = [
        [
            *(format_value(one.get(key)) for key in swept),
            *(
                "–" if _number(one.get(key)) is None else form(one[key])
                for key, form in _COLUMNS.items()
            ),
            str(one.get("state")),
        ]
        for one in ordered
    ]
    words = 1 + sum(isinstance(students[0].get(key), str) for key in swept[1:])
    note = "Top-1 of the moving average where there is one. Seconds: its share of its cohort."
    return Table("Students, the most accurate first", (*swept, *_HEADS, "state"), rows, note, words)


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None
