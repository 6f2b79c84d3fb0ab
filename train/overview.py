"""What a sweep found: a table, a CSV, JSON, and a picture."""

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools import files

log = logging.getLogger("kdcache")
Row = dict[str, Any]
_AGAINST = (
    ("parameters", "parameters"),
    ("images_per_second", "images/s of the trained student"),
    ("cost_seconds", "cost in seconds: its share of its cohort"),
)
"""Key and axis of the panels of the upper row."""
_COLUMNS = (
    ("parameters", "parameters", "{:,}"),
    ("top1", "top-1", "{:.1f}"),
    ("top1_ema", "EMA", "{:.1f}"),
    ("loss", "loss", "{:.4f}"),
    ("images_per_second", "images/s", "{:,.0f}"),
    ("cost_seconds", "cost, s", "{:,.1f}"),
)


def table(rows: Sequence[Row], swept: Sequence[str]) -> str:
    """The students in lines of text, the most accurate first."""
    ordered, swept = sorted(rows, key=_merit, reverse=True), heads(rows, swept)
    columns = [(key, title, form) for key, title, form in _COLUMNS if any(key in r for r in rows)]
    columns = [c for c in columns if any(r.get(c[0]) is not None for r in rows)]
    head = [*swept, *(title for _, title, _ in columns), ""]
    body = [
        [
            *(_word(row.get(key)) for key in swept),
            *(_cell(row.get(key), form) for key, _, form in columns),
            "" if row["state"] == "finished" else str(row["state"]),
        ]
        for row in ordered
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    left = len(swept)
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, *body]
    ]
    return "\n".join(lines)


def heads(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Keys by which students are told apart: those swept, after names that say something else."""
    told = (
        (str(row.get("name")), key, _word(row[key])) for row in rows for key in swept if key in row
    )
    own = any(f"{key}={value}" not in name and value not in name for name, key, value in told)
    return [*swept] if swept and not own else ["name", *swept]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """A line for each student, in the order of the grid."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, text.getvalue().encode())


def draw(rows: Sequence[Row], swept: Sequence[str], title: str, path: Path) -> bool:
    """Draw accuracy against size, speed and cost, and against each swept key, into a PNG.

    Returns:
        Whether there was something to draw, two measured students, and something to draw with.
    """
    measured = [row for row in rows if row.get("accuracy") is not None]
    if len(measured) < 2:
        return False
    try:
        import matplotlib
    except ImportError:
        log.info("no picture without matplotlib: pip install 'kdcache[demo]'")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    keys = [key for key in swept if len({_word(row[key]) for row in measured}) > 1]
    columns = max(len(_AGAINST), min(len(keys), 4))
    lower = math.ceil(len(keys) / columns)
    figure, axes = plt.subplots(
        1 + lower, columns, figsize=(4.2 * columns, 3.6 * (1 + lower)), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    panels = axes.ravel().tolist()
    colour_by = keys[0] if keys else "name"
    colours = _colours(measured, colour_by)
    for panel, (key, label) in zip(panels, _AGAINST, strict=False):
        _against(panel, measured, key, label, colour_by, colours)
    for panel, key in zip(panels[columns:], keys, strict=False):
        _along(panel, measured, key, colour_by, colours)
    for panel in [*panels[len(_AGAINST) : columns], *panels[columns + len(keys) :]]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel("top-1 accuracy, %")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{colour_by} = {value}")
        for value, colour in colours.items()
    ]
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    files.write(path, picture.getvalue())
    return True


def _against(
    axes: Any, rows: Sequence[Row], key: str, label: str, by: str, colours: dict[str, Any]
) -> None:
    """Accuracy against a cost or a gain; what nothing beats is joined by a line."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    shown = [row for row in rows if row.get(key)]
    for row in shown:
        axes.scatter(row[key], row["accuracy"], color=colours[_word(row.get(by))], zorder=3)
    if not shown:
        return
    more = key == "images_per_second"
    best, where = front(shown, key, more), "pre" if more else "post"
    x, y = [row[key] for row in best], [row["accuracy"] for row in best]
    axes.step(x, y, where=where, color="0.6", linewidth=1, zorder=1)
    values = [row[key] for row in shown]
    if max(values) > 8 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label)
    _plain(axes)


def _along(axes: Any, rows: Sequence[Row], key: str, by: str, colours: dict[str, Any]) -> None:
    """Accuracy along the values of a key: every student, and lines through their means."""
    values = list(dict.fromkeys(row[key] for row in rows))
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    for row in rows:
        x = values.index(row[key])
        colour = colours[_word(row.get(by))]
        axes.scatter(x, row["accuracy"], color=colour, alpha=0.6, zorder=2)
    if key != by:
        for value, colour in colours.items():
            _line(axes, [r for r in rows if _word(r.get(by)) == value], key, values, color=colour)
    _line(axes, rows, key, values, color="0.25", marker="D", markersize=5, zorder=3)
    axes.set_xticks(range(len(values)), [_word(value) for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    if max(len(_word(value)) for value in values) * len(values) > 28:
        axes.tick_params(axis="x", rotation=20)
    axes.set_xlabel(f"{key} (◆ mean of all)")
    _plain(axes)


def _line(axes: Any, rows: Sequence[Row], key: str, values: list[Any], **style: Any) -> None:
    """Means of the students at each value."""
    groups = [[row["accuracy"] for row in rows if row[key] == value] for value in values]
    points = [(x, math.fsum(group) / len(group)) for x, group in enumerate(groups) if group]
    axes.plot(*zip(*points, strict=True), **style)


def front(rows: Sequence[Row], key: str, more: bool) -> list[Row]:
    """The students that no other beats in both, by ascending `key`."""
    ordered = sorted(rows, key=lambda row: (-row[key] if more else row[key], -row["accuracy"]))
    found: list[Row] = []
    for row in ordered:
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found[::-1] if more else found


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(rows: Sequence[Row], key: str) -> dict[str, Any]:
    values = list(dict.fromkeys(_word(row.get(key)) for row in rows))
    return {value: f"C{i % 10}" for i, value in enumerate(values)}


def _merit(row: Row) -> tuple[bool, float, float]:
    finished = row["state"] == "finished"
    return finished, row.get("accuracy") or 0.0, -(row.get("loss") or math.inf)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)
