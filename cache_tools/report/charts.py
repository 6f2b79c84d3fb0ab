"""Kinds of charts, drawn into matplotlib's axes, by default in the colors of `svg`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_tools.report.formatting import brief
from cache_tools.report.svg import INK, PALE, SERIES, SIZE
from cache_tools.runtime.text import printable

_DASHES: Any = ("-", "--", ":", "-.")
EPOCH, STEP = "epoch", "step"
"""Axes of whole numbers."""
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name → x and y."""


@dataclass(frozen=True)
class Palette:
    """Colors of a drawing, as matplotlib accepts them."""

    series: tuple[str, ...]
    ink: str
    pale: str

    def color(self, number: int, of: int = 0) -> str:
        """Return the color of a series; all have the first if they are more than the colors."""
        return self.series[number % len(self.series) if of <= len(self.series) else 0]


PAGE = Palette(SERIES, INK, PALE)


def histogram(
    axes: Any, edges: Sequence[float], counts: Sequence[int], label: str, of: str = "views"
) -> None:
    """Draw bars between edges, as shares in percent."""
    total = max(sum(counts), 1)
    shares = [100 * count / total for count in counts]
    axes.stairs(shares, edges, fill=True, color=SERIES[0])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel(f"% of {of}")
    axes.grid(axis="x", visible=False)


def lines(
    axes: Any, series: Series, x_label: str, y_label: str, groups: Mapping[str, str] | None = None
) -> None:
    """Draw a line for each series; those of one group share a color and a name."""
    group_of = groups or {name: name for name in series}
    known = list(dict.fromkeys(group_of[name] for name in series))
    for name, (x, y) in series.items():
        i = known.index(group_of[name])
        dash = _DASHES[i // len(SERIES) % len(_DASHES)]
        marker = "o" if len(x) < 12 else None
        axes.plot(x, y, dash, color=PAGE.color(i), marker=marker, markersize=3.5)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if x_label in (EPOCH, STEP):
        integer_axis(axes)
    if len(known) > 1:
        legend(axes, {name: i for i, name in enumerate(known)})


def legend(
    axes: Any, names: Mapping[str, int], marker: str = "", title: str = "", palette: Palette = PAGE
) -> None:
    """Add the names of series beneath the figure, in their colors."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=palette.color(i), label=short(name, 30), marker=marker or None,
            linestyle="" if marker else _DASHES[i // len(SERIES) % len(_DASHES)],
        )
        for name, i in names.items()
    ]  # fmt: skip
    longest = max(len(short(name, 30)) for name in names)
    letters = 64 * axes.figure.get_figwidth() / SIZE[0]
    columns = max(1, min(len(handles), int(letters) // (longest + 6)))
    place = {"loc": "outside lower center", "ncols": columns, "title": title or None}
    axes.figure.legend(handles=handles, title_fontsize=8.5, **place)


def points(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float],
    x_label: str,
    y_label: str,
) -> None:
    """Draw points with error bars, joined."""
    axes.errorbar(
        x, y, errors, color=SERIES[0], marker="o", markersize=4, capsize=2.5, elinewidth=1
    )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def bars(
    axes: Any, names: Sequence[str], values: Sequence[float], errors: Sequence[float], label: str
) -> None:
    """Draw bars from left to right, the first at the top, with their errors."""
    rows = range(len(names))
    axes.barh(rows, values, color=SERIES[0], height=0.72)
    if any(errors):
        axes.errorbar(values, rows, xerr=errors, fmt="none", ecolor=PALE, capsize=2, elinewidth=1)
    axes.set_yticks(rows, [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def matrix(
    axes: Any,
    shares: Mapping[tuple[int, int], float],
    names: Sequence[str],
    x_label: str,
    y_label: str,
) -> None:
    """Draw a matrix of shares 0..1 as tints, rows from the top; a small one with its numbers."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    count, cells = len(names), sorted(shares)
    boxes = [Rectangle((column, row), 1, 1) for row, column in cells]
    colors = [SERIES[0] if row == column else SERIES[1] for row, column in cells]
    alphas = [0.12 + 0.76 * min(shares[cell], 1.0) ** 0.6 for cell in cells]
    tints = [(*to_rgb(color), alpha) for color, alpha in zip(colors, alphas, strict=True)]
    axes.add_collection(PatchCollection(boxes, facecolors=tints, edgecolors="none"))
    if count <= 12:
        for row, column in cells:
            percent = 100 * shares[row, column]
            text = f"{percent:.0f}" if percent >= 0.5 else ""
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5)
    places = [i + 0.5 for i in range(count)]
    brief = [name.removeprefix("class ") for name in names]
    narrow = count <= 20 and max(len(name) for name in brief) <= 2
    axes.set_xticks(places, [short(n, 12) for n in brief], rotation=0 if narrow else 90)
    axes.set_yticks(places, [short(n, 18) for n in brief])
    axes.tick_params(length=0, labelsize=9 if count <= 12 else 6.5)
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xlabel=x_label, ylabel=y_label)
    axes.grid(visible=False)


def log_axis(axes: Any) -> None:
    """Make the x axis logarithmic, with numbers in plain text."""
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def integer_axis(axes: Any) -> None:
    """Restrict the ticks of the x axis to whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def adaptive_axis(axes: Any, values: Sequence[float]) -> None:
    """Format the x axis with short numbers, logarithmic if values are far apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: brief(value))


def row_size(count: int) -> tuple[float, float]:
    """Return the size of a chart with a line of text for each row."""
    return SIZE[0], max(1.3, 0.75 + 0.21 * count)


def short(text: str, most: int = 26) -> str:
    """Shorten a name to fit beside a chart, to its beginning and end, where names differ."""
    if len(text := printable(text)) <= most:
        return text
    tail = most // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"
