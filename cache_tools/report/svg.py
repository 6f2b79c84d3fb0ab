"""SVG charts, drawn by matplotlib and colored by the page.

Text remains text, so that it can be read aloud, searched and scaled; colors are variables of the
page's style (`var(--ink)`), so that one chart is legible in light and dark mode. Title and finding
are its accessible label.

Names of classes and keys are untrusted: matplotlib writes them as text, never as markup or
mathematics.
"""

import io
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from cache_tools.errors import UsageError

INK, PALE, GRID = "#010101", "#010102", "#010103"
SERIES = tuple(f"#02020{i}" for i in range(8))
"""Colours in the order of use; beyond them they come again with another dash."""
_VARIABLES = {INK: "ink", PALE: "pale", GRID: "grid"} | {
    color: f"series-{i}" for i, color in enumerate(SERIES)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SIZE = (4.4, 2.8)
"""Inches of 72 units: the width of a phone, which shows text at its nominal size."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdcache",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
Draw = Callable[[Any], None]
"""Function that draws into matplotlib's axes."""


@dataclass(frozen=True)
class Chart:
    """SVG chart with its caption."""

    title: str
    """Subject of the chart."""
    finding: str
    """Result in numbers: the caption and text alternative."""
    svg: str
    """Markup to insert verbatim."""
    wide: bool = False
    """True if it takes the whole width of a page."""


def check() -> None:
    """Raise UsageError unless matplotlib and jinja2 are installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"a report is drawn by matplotlib and written by jinja2 ({error}). Run: "
            "pip install 'kdcache[report]'."
        ) from None


def chart(
    title: str, finding: str, draw: Draw, size: tuple[float, float] = SIZE, wide: bool = False
) -> Chart:
    """Draw a chart of `size` (width, height) in inches; the other arguments as in `Chart`."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # the browser has the glyphs that matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        layout = figure.get_layout_engine()
        if layout is not None:  # now, once: savefig would draw everything twice for it
            layout.execute(figure)
            figure.set_layout_engine("none")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return Chart(title, finding, _inline(out.getvalue(), f"{title}. {finding}"), wide)


def _inline(data: bytes, label: str) -> str:
    """Convert an SVG file to an element of a page: labelled, scalable, in the page's colors."""
    root = ElementTree.fromstring(data)  # matplotlib wrote it
    own = f"c{zlib.crc32(label.encode()):08x}-"  # ids are of the whole page
    for element in root.iter():
        for child in [c for c in element if c.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata")]:
            element.remove(child)
        if link := element.attrib.pop(f"{{{_XLINK}}}href", None):
            element.set("href", link.replace("#", f"#{own}"))
        if clip := element.get("clip-path"):
            element.set("clip-path", clip.replace("#", f"#{own}"))
        if name := element.get("id"):
            element.set("id", own + name)
        if style := element.get("style"):
            kept = [part for part in style.split("; ") if not part.startswith("font-family")]
            element.set("style", re.sub(r"#[0-9a-f]{6}", _variable, "; ".join(kept)))
        if element.tag != f"{{{_SVG}}}text":
            element.text = None
        element.tail = None
    used = re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values()))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    del root.attrib["height"], root.attrib["width"]
    root.attrib |= {"role": "img", "aria-label": label}
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _variable(color: re.Match[str]) -> str:
    """Return the page's variable for one of its colors, any other color as it is."""
    return f"var(--{_VARIABLES[color[0]]})" if color[0] in _VARIABLES else color[0]
