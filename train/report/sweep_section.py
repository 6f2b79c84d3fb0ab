"""What a sweep found: accuracy against size, speed and time, along each key, and its table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.report import charts, svg
from cache_tools.report.formatting import brief, count, listed, share, small
from cache_tools.report.page import Block, Group, Note, Section, Table
from cache_tools.report.svg import Chart, chart
from cache_tools.store import info
from cache_tools.store.cache import Cache
from train import run_dir
from train.report.cost import table
from train.sweep.table import headers, pareto_front

Told = dict[str, Any]
NAME = "sweep.json"
_AGAINST = {
    "parameters": ("parameters", "parameters", False),
    "images_per_second": ("speed", "images/s of the trained student", True),
    "cost_seconds": ("training time", "seconds of training, its share of its cohort", False),
}
"""Key → name, axis, and whether more is better."""
_COLUMNS = {
    "accuracy": share,
    "loss": small,
    "parameters": count,
    "images_per_second": count,
    "cost_seconds": small,
}
_TICKS = 8
"""Numbers of a swept key that are written one by one; more are an axis."""
_HEADS = ("top-1", "loss", "parameters", "images/s", "seconds")


def facts(folder: Path) -> Told:
    """What is known of a sweep, and the bytes of its cache where that still is.

    Raises:
        UsageError: The file is none of a sweep's.
    """
    told = run_dir.read_json(folder / NAME)
    students = told.get("students") if isinstance(told, dict) else None
    if not isinstance(students, list) or not all(isinstance(s, dict) for s in students):
        raise UsageError(f"{folder / NAME} lists no students. Run kdcache sweep again to write it.")
    plain = [{key: _plain(value) for key, value in one.items()} for one in students]
    swept = [key for key in told.get("swept", []) if isinstance(key, str)]
    told = {**told, "students": plain, "swept": swept, "cache": _cache(folder, students)}
    return {"kind": "sweep", "name": str(folder), **told}


def section(told: Told) -> Section:
    """The section of a sweep."""
    students, swept = told["students"], [*told.get("swept", [])]
    measured = [one for one in students if _number(one.get("accuracy")) is not None]
    keys = [key for key in swept if len({_word(one.get(key)) for one in measured}) > 1]
    groups = [Group("Accuracy against what it takes", _fronts(measured, keys))]
    along = [_along(measured, key, keys[0]) for key in keys]
    if along:
        lead = "Every point is a student; diamonds are means over all other keys."
        groups.append(Group("Along each swept key", along, lead))
    groups.append(Group("All students", [_table(students, headers(students, swept))]))
    if (costs := told.get("ledger")) and costs.get("students"):
        groups.append(Group("What it cost", [table(costs, told["cache"])]))
    return Section(told["name"], "sweep", _lead(students, measured, swept), groups)


def _cache(folder: Path, students: Sequence[Told]) -> Told | None:
    """Where the cache of the first student is and its bytes; None when it is not there any more."""
    for one in students:
        name = str(one.get("name"))
        if Path(name).name != name:  # a student's folder lies in its sweep's
            continue
        try:
            where = run_dir.read_config(folder / name)["cache"]
            places = where if isinstance(where, list) else [where]
            if not all(Path(place).is_dir() for place in places):
                continue
            sizes = [info.info(Cache.open(place))["bytes"] for place in places]
        except (KdcacheError, OSError, KeyError):
            continue
        return {"path": where, "bytes": sum(sizes)}
    return None


def _lead(students: list[Told], measured: list[Told], swept: list[str]) -> str:
    states = [str(one.get("state")) for one in students]
    words = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    over = f" over {', '.join(swept)}" if swept else ""
    text = f"{len(students)} students{over}: {words}."
    if measured:
        best = max(measured, key=lambda one: one["accuracy"])
        text += f" The most accurate is {best.get('name')} with {share(best['accuracy'])}."
    return text


def _fronts(measured: list[Told], keys: list[str]) -> list[Block]:
    found = [
        _against(rows, key, keys[0] if keys else "name")
        for key in _AGAINST
        if len(rows := [one for one in measured if _number(one.get(key))]) > 1
    ]
    return [*found] or [Note("Fewer than two students are measured: there is nothing to compare.")]


def _against(rows: list[Told], key: str, by: str) -> Chart:
    name, label, more = _AGAINST[key]
    best = pareto_front(rows, key, more)
    groups = list(dict.fromkeys(_word(one.get(by)) for one in rows))
    words = listed([f"{share(one['accuracy'])} at {brief(one[key])}" for one in best])

    def draw(axes: Any) -> None:
        axes.plot(
            [one[key] for one in best], [one["accuracy"] for one in best],
            color=svg.PALE, linewidth=1, drawstyle="steps-pre" if more else "steps-post",
        )  # fmt: skip
        for one in rows:
            number = groups.index(_word(one.get(by)))
            axes.plot(one[key], one["accuracy"], "o", color=charts.colour(number, len(groups)))
        axes.set(xlabel=label, ylabel="top-1, %")
        charts.spread(axes, [one[key] for one in rows])
        if 1 < len(groups) <= len(svg.SERIES):
            charts.legend(axes, {g: i for i, g in enumerate(groups)}, "o", by)

    return chart(
        f"Accuracy against {name}",
        f"{len(best)} of {len(rows)} students are beaten by no other in both: {words} ({label}).",
        draw,
        (svg.SIZE[0], svg.SIZE[1] + 0.3),
    )


def _along(rows: list[Told], key: str, by: str) -> Chart:
    """Accuracy along the values of a key: numbers from left to right, words from top to bottom."""
    values: list[Any] = list(dict.fromkeys(one.get(key) for one in rows))
    numbers = all(_number(value) is not None for value in values)
    if numbers:
        values.sort()
    groups = list(dict.fromkeys(_word(one.get(by)) for one in rows))
    of = [[one["accuracy"] for one in rows if one.get(key) == value] for value in values]
    means = [math.fsum(each) / len(each) for each in of]
    words = listed([f"{_word(v)}: {m:.1f} %" for v, m in zip(values, means, strict=True)])
    many = len(values) > _TICKS
    at = values if numbers and many else [*range(len(values))]

    def draw(axes: Any) -> None:
        for one in rows:
            colour = charts.colour(groups.index(_word(one.get(by))), len(groups))
            place = at[values.index(one.get(key))], one["accuracy"]
            axes.plot(*(place if numbers else place[::-1]), "o", color=colour, alpha=0.75)
        style = {"color": svg.INK, "marker": "D", "markersize": 5}
        if not numbers:
            axes.plot(means, at, linestyle="", **style)
            axes.set_yticks(at, [charts.short(_word(value)) for value in values])
            axes.set(ylim=(len(values) - 0.5, -0.5), xlabel="top-1, %")
            return
        axes.plot(at, means, **style)
        axes.set(xlabel=key, ylabel="top-1, %")
        if many:
            charts.spread(axes, values)
        else:
            axes.set_xticks(at, [_word(value) for value in values])
            axes.set_xlim(-0.5, len(values) - 0.5)

    size = svg.SIZE if numbers else charts.rows(len(values))
    return chart(f"Along {key}", f"Means by {key}: {words}.", draw, size)


def _table(students: list[Told], swept: list[str]) -> Table:
    ordered = sorted(students, key=lambda one: -(_number(one.get("accuracy")) or -1.0))
    rows = [
        [
            *(_word(one.get(key)) for key in swept),
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


def _plain(value: Any) -> Any:
    """A value of a swept key; what is no such value, as text."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
