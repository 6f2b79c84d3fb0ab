"""Self-contained HTML page of sections: no script, no font, no request.

All text is escaped; the only markup inserted verbatim are the charts of `svg`. The page's
Content-Security-Policy forbids whatever it does not need: even if a hostile class name got in as
markup, no browser would run it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_tools.report.svg import Chart
from cache_tools.runtime.text import printable
from cache_tools.version import __version__

Facts = dict[str, Any]
"""JSON-ready numbers of a cache, run, comparison or sweep, of which its section is made."""


@dataclass(frozen=True)
class Picture:
    """Image file with its caption."""

    title: str
    data: bytes
    """Bytes of the file."""
    media_type: str
    """Such as image/jpeg."""
    alt: str
    """Text alternative."""
    note: str = ""
    """Caption below."""

    @property
    def base64(self) -> str:
        """Bytes in base64, for a data URL."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Table:
    """Numbers in rows; the first cell of a row names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Caption below."""
    words: int = 1
    """Number of columns of words, from the left."""
    wide: bool = True
    """True if it takes the whole width of a page."""


@dataclass(frozen=True)
class DefinitionList:
    """Names and values."""

    items: dict[str, str]


@dataclass(frozen=True)
class Paragraph:
    """A sentence, such as the reason for a missing chart."""

    text: str


Element = Chart | Picture | Table | DefinitionList | Paragraph


@dataclass(frozen=True)
class Group:
    """Elements under one heading."""

    title: str
    elements: Sequence[Element]
    lead: str = ""
    """Introduction."""


@dataclass(frozen=True)
class Section:
    """Section of one cache, run, comparison or sweep."""

    title: str
    kind: str
    """cache, run, comparison or sweep."""
    lead: str
    """Main result, in a sentence or two."""
    groups: Sequence[Group]


def render(sections: Sequence[Section]) -> str:
    """Render the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cache_tools.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # charts, which are markup, and numbers pass unchanged
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    names: dict[type[Any], str] = {
        Chart: "chart", Picture: "picture", Table: "table", DefinitionList: "definitions",
        Paragraph: "paragraph",
    }  # fmt: skip
    environment.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["kind"] = lambda block: names[type(block)]
    page = environment.get_template("page.html.jinja")
    return page.render(sections=sections, version=__version__)
