"""Table and picture of settings: the gradient's error and cosine against bytes per view."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from cache_tools.report import charts
from cache_tools.report.charts import Palette
from cache_tools.storage import atomic
from train.advise.grid import TAILS, Row, front

log = logging.getLogger("kdcache")
_PNG = Palette(tuple(f"C{i}" for i in range(10)), ink="0.25", pale="0.6")
_MARKERS: dict[str, str] = dict(zip(TAILS, "osx", strict=True))
_STUDENTS = ("untrained", "late")


def table(rows: Sequence[Row], best: Row | None) -> str:
    """Format the own sparsity and the settings that no other beats, by ascending bytes."""
    wanted = [*(row for row in rows if row.own), *front([row for row in rows if not row.own])]
    columns = "tau", "k_max", "levels", "tail", "kept", "bytes", "untrained", "late"
    layout = "{:>7} {:>6} {:>7}  {:7} {:>6} {:>7}  {:>16} {:>16}  {}"
    lines = [layout.format(*columns, "").rstrip()]
    for row in wanted:
        spec = row.targets
        pairs = (f"{c.error:.3g} / {c.cosine:.4f}" for c in (row.untrained, row.late))
        note = "as it is" if row.own else ""
        sizes = f"{row.kept:.1f}", f"{row.bytes_per_view:.1f}"
        cells = (f"{spec.tau:g}", spec.k_max, spec.levels, row.tail, *sizes, *pairs)
        lines.append(layout.format(*cells, "<- cheapest" if row is best else note).rstrip())
    return "\n".join(lines)


def draw(rows: Sequence[Row], best: Row | None, error: float, title: str, path: Path) -> bool:
    """Draw error and cosine of both students against bytes into a PNG.

    Colors are tau, shades the levels, markers the tail models, lines join k_max.

    Returns:
        True if the picture was drawn: it needs matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        log.info("no picture without matplotlib: pip install 'kdcache[demo]'")
        return False
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    taus = sorted({row.targets.tau for row in rows if not row.own})
    most = max(row.targets.levels for row in rows)
    lines: dict[tuple[float, int, str], list[Row]] = {}
    for row in rows:
        if not row.own:
            lines.setdefault((row.targets.tau, row.targets.levels, row.tail), []).append(row)
    picture = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure((10, 7.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, student in enumerate(_STUDENTS):
            for axes, value in zip(panels[:, column], ("error", "cosine"), strict=True):

                def at(
                    some: Sequence[Row], student: str = student, value: str = value
                ) -> tuple[list[float], list[float]]:
                    y = [float(getattr(getattr(row, student), value)) for row in some]
                    return [row.bytes_per_view for row in some], y

                for (tau, levels, tail), of in lines.items():
                    color = _PNG.color(taus.index(tau), len(taus))
                    style = {"color": color, "markersize": 4, "linewidth": 0.8}
                    axes.plot(*at(of), marker=_MARKERS[tail], alpha=levels / most, **style)
                own = [row for row in rows if row.own]
                axes.plot(*at(own), "*", color=_PNG.ink, markersize=12, label="as it is")
                if best is not None:
                    ring = {"markersize": 13, "markerfacecolor": "none"}
                    axes.plot(*at([best]), "o", color=_PNG.ink, label="cheapest", **ring)
            panels[0, column].axhline(error, color=_PNG.ink, linewidth=0.8, linestyle="--")
            panels[0, column].set(title=f"{student} student", yscale="log")
            panels[0, column].yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            panels[1, column].set_xlabel("bytes per view")
        panels[0, 0].set_ylabel("relative error of the gradient")
        panels[1, 0].set_ylabel("cosine of the gradient")
        for axes in panels.ravel():
            charts.adaptive_axis(axes, [row.bytes_per_view for row in rows])
        names = {f"tau = {tau:g}": i for i, tau in enumerate(taus)}
        charts.legend(panels[0, 0], names, "o", "lines join k_max", _PNG)
        marks = [m for m in _MARKERS if any(row.tail == m for row in rows if not row.own)]
        handles = [
            *panels[0, 0].get_legend_handles_labels()[0],
            *(Line2D([], [], color=_PNG.ink, marker=_MARKERS[m], label=m) for m in marks),
        ]
        panels[0, 1].legend(handles=handles, fontsize=8)
        figure.suptitle(title)
        figure.savefig(picture, dpi=110)
    atomic.write(path, picture.getvalue())
    return True
