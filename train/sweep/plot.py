"""Charts of a sweep: accuracy against size, speed and cost, and along each swept key.

`against` and `along` draw into axes; `kdcache sweep` puts all of them into one PNG, the report each
into a chart of its own. Colors tell the values of one key apart, as long as there are enough.
"""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_tools.report import charts
from cache_tools.report.charts import Palette
from cache_tools.storage import atomic
from train.sweep.table import Row, format_value, pareto_front

log = logging.getLogger("kdcache")
AGAINST = {
    "parameters": ("parameters", "parameters", False),
    "images_per_second": ("speed", "images/s of the trained student", True),
    "cost_seconds": ("training time", "seconds of training, its share of its cohort", False),
}
"""Key → name, axis label, and True if more is better."""
_TICKS = 8
"""Values of a numeric key with a tick each; more get an axis of their own scale."""
_PNG = Palette(tuple(f"C{i}" for i in range(10)), ink="0.25", pale="0.6")
_STYLE: Any = {
    "text.parse_math": False,  # names are text, whatever they contain
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
}


def draw(rows: Sequence[Row], swept: Sequence[str], title: str, path: Path) -> bool:
    """Draw accuracy against size, speed and cost, and along each swept key, into a PNG.

    Returns:
        True if the picture was drawn: it needs two measured students, and matplotlib.
    """
    measured = [row for row in rows if row.get("accuracy") is not None]
    if len(measured) < 2:
        return False
    try:
        import matplotlib
    except ImportError:
        log.info("no picture without matplotlib: pip install 'kdcache[demo]'")
        return False
    from matplotlib.figure import Figure

    keys = varied(measured, swept)
    by = keys[0] if keys else "name"
    columns = max(len(AGAINST), min(len(keys), 4))
    lower, picture = math.ceil(len(keys) / columns), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure((4.2 * columns, 3.6 * (1 + lower)), layout="constrained")
        axes = figure.subplots(1 + lower, columns, sharey=True, squeeze=False)
        panels = axes.ravel().tolist()
        for panel, key in zip(panels, AGAINST, strict=False):
            if found := [row for row in measured if row.get(key)]:
                against(panel, found, key, by, _PNG)
        for panel, key in zip(panels[columns:], keys, strict=False):
            along(panel, measured, key, by, _PNG)
            panel.set_xlabel(f"{key} (◆ mean of all)")
        for panel in [*panels[len(AGAINST) : columns], *panels[columns + len(keys) :]]:
            panel.set_visible(False)
        for panel in panels:
            panel.set_ylabel("top-1 accuracy, %" if panel in axes[:, 0] else "")
        legend(panels[0], measured, by, _PNG)
        figure.suptitle(title)
        figure.savefig(picture, dpi=110)
    atomic.write(path, picture.getvalue())
    return True


def varied(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Return the swept keys of which the students have several values."""
    return [key for key in swept if len({format_value(row.get(key)) for row in rows}) > 1]


def against(axes: Any, rows: Sequence[Row], key: str, by: str, palette: Palette) -> None:
    """Draw accuracy against a cost or a gain, with a line through the students no other beats.

    `key` is of `AGAINST`; `by` is the key of the colors.
    """
    _, label, more = AGAINST[key]
    best, colors = pareto_front(rows, key, more), _colors(rows, by, palette)
    style = {"color": palette.pale, "linewidth": 1, "zorder": 1}
    x, y = [row[key] for row in best], [row["accuracy"] for row in best]
    axes.plot(x, y, drawstyle="steps-pre" if more else "steps-post", **style)
    for row in rows:
        axes.plot(row[key], row["accuracy"], "o", color=colors[format_value(row.get(by))])
    axes.set(xlabel=label, ylabel="top-1, %")
    charts.adaptive_axis(axes, [row[key] for row in rows])


def along(
    axes: Any, rows: Sequence[Row], key: str, by: str, palette: Palette, upright: bool = True
) -> None:
    """Draw accuracy along the values of a key: every student, and means; lines join numbers.

    Values of the swept `key` go from left to right if `upright`, else from top to bottom.
    """
    values, ordered = values_of(rows, key)
    many = ordered and len(values) > _TICKS
    place = dict(zip(values, values if many else range(len(values)), strict=True))
    colors = _colors(rows, by, palette)

    def plot(at: Sequence[float], accuracy: Sequence[float], **style: Any) -> None:
        axes.plot(*((at, accuracy) if upright else (accuracy, at)), **style)

    for row in rows:
        color = colors[format_value(row.get(by))]
        plot([place[row.get(key)]], [row["accuracy"]], marker="o", color=color, alpha=0.65)
    if ordered and key != by and len(colors) <= len(palette.series):
        for value, color in colors.items():
            of_value = means([row for row in rows if format_value(row.get(by)) == value], key)
            plot([place[v] for v in of_value], [*of_value.values()], color=color, linewidth=1)
    mean = means(rows, key)
    style = {"color": palette.ink, "marker": "D", "markersize": 5, "zorder": 3}
    line = "-" if ordered else ""
    plot([place[v] for v in values], [mean[v] for v in values], linestyle=line, **style)
    if not upright:
        axes.set_yticks([*place.values()], [charts.short(format_value(value)) for value in values])
        axes.set(ylim=(len(values) - 0.5, -0.5), xlabel="top-1, %")
        return
    axes.set(xlabel=key, ylabel="top-1, %")
    if many:
        charts.adaptive_axis(axes, values)
        return
    words = [charts.short(format_value(value), 18) for value in values]
    axes.set_xticks([*place.values()], words)
    axes.set_xlim(-0.5, len(values) - 0.5)
    if (letters := max(len(word) for word in words) * len(words)) > 28:
        axes.tick_params(axis="x", rotation=20 if letters < 60 else 90)


def legend(axes: Any, rows: Sequence[Row], by: str, palette: Palette) -> None:
    """Add a legend of the colors to the figure, if there are several and enough of them."""
    if 1 < len(colors := _colors(rows, by, palette)) <= len(palette.series):
        charts.legend(axes, {value: i for i, value in enumerate(colors)}, "o", by, palette)


def values_of(rows: Sequence[Row], key: str) -> tuple[list[Any], bool]:
    """Return the values of a key, ascending if all are numbers, and whether they are."""
    values: list[Any] = list(dict.fromkeys(row.get(key) for row in rows))
    ordered = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    return sorted(values) if ordered else values, ordered


def means(rows: Sequence[Row], key: str) -> Mapping[Any, float]:
    """Return the mean accuracy of the students at each value of a key, in order of `values_of`."""
    values, _ = values_of(rows, key)
    groups = {v: [row["accuracy"] for row in rows if row.get(key) == v] for v in values}
    return {value: math.fsum(group) / len(group) for value, group in groups.items()}


def _colors(rows: Sequence[Row], by: str, palette: Palette) -> dict[str, str]:
    values = list(dict.fromkeys(format_value(row.get(by)) for row in rows))
    return {value: palette.color(i, len(values)) for i, value in enumerate(values)}
