"""What a sweep found, as a picture: accuracy against what students take, and along each key."""

import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools.storage import atomic
from train.sweep.table import Row, format_value, pareto_front

log = logging.getLogger("kdcache")
_AGAINST = (
    ("parameters", "parameters"),
    ("images_per_second", "images/s of the trained student"),
    ("cost_seconds", "cost in seconds: its share of its cohort"),
)
"""Key and axis of the panels of the upper row."""
_COLOURS, _TICKS, _LONGEST = 10, 8, 18
"""Values that have colours, numbers that are written one by one, letters of a word."""


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
    matplotlib.rcParams["text.parse_math"] = False  # names are text, whatever they contain
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    keys = [key for key in swept if len({format_value(row[key]) for row in measured}) > 1]
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
    if 1 < len(handles) <= _COLOURS:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    atomic.write(path, picture.getvalue())
    return True


def _against(
    axes: Any, rows: Sequence[Row], key: str, label: str, by: str, colours: dict[str, Any]
) -> None:
    """Accuracy against a cost or a gain; what nothing beats is joined by a line."""
    from matplotlib.ticker import EngFormatter

    shown = [row for row in rows if row.get(key)]
    for row in shown:
        axes.scatter(row[key], row["accuracy"], color=colours[format_value(row.get(by))], zorder=3)
    if not shown:
        return
    more = key == "images_per_second"
    best, where = pareto_front(shown, key, more), "pre" if more else "post"
    x, y = [row[key] for row in best], [row["accuracy"] for row in best]
    axes.step(x, y, where=where, color="0.6", linewidth=1, zorder=1)
    _spread(axes, [row[key] for row in shown])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label)
    _plain(axes)


def _along(axes: Any, rows: Sequence[Row], key: str, by: str, colours: dict[str, Any]) -> None:
    """Accuracy along the values of a key: every student, their means, and lines where it counts."""
    values = list(dict.fromkeys(row[key] for row in rows))
    counts = all(type(value) in (int, float) for value in values)
    if counts:
        values.sort()
    many = counts and len(values) > _TICKS
    at = dict(zip(values, values if many else range(len(values)), strict=True))
    for row in rows:
        colour = colours[format_value(row.get(by))]
        axes.scatter(at[row[key]], row["accuracy"], color=colour, alpha=0.6, zorder=2)
    if counts and key != by and len(colours) <= _COLOURS:
        for value, colour in colours.items():
            _means(
                axes, [r for r in rows if format_value(r.get(by)) == value], key, at, color=colour
            )
    line = "-" if counts else ""
    _means(axes, rows, key, at, linestyle=line, color="0.25", marker="D", markersize=5, zorder=3)
    if many:
        _spread(axes, values)
    else:
        axes.set_xticks(range(len(values)), [_brief(format_value(value)) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    letters = max(len(_brief(format_value(value))) for value in values) * len(values)
    if not many and letters > 28:
        axes.tick_params(axis="x", rotation=20 if letters < 60 else 90)
    axes.set_xlabel(f"{key} (◆ mean of all)")
    _plain(axes)


def _means(axes: Any, rows: Sequence[Row], key: str, at: dict[Any, float], **style: Any) -> None:
    """Means of the students at each value."""
    groups = {x: [row["accuracy"] for row in rows if row[key] == value] for value, x in at.items()}
    points = [(x, math.fsum(group) / len(group)) for x, group in groups.items() if group]
    axes.plot(*zip(*points, strict=True), **style)


def _spread(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where values are far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(rows: Sequence[Row], key: str) -> dict[str, Any]:
    values = list(dict.fromkeys(format_value(row.get(key)) for row in rows))
    few = len(values) <= _COLOURS
    return {value: f"C{i if few else 0}" for i, value in enumerate(values)}
