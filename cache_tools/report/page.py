"""Sections to one HTML page that needs nothing else: no script, no font, no request.

Everything that is written is escaped; the only markup taken as it is are the charts, which
`charts` makes. The page forbids itself whatever it does not need (its Content-Security-Policy):
even if a stranger's class name got in as markup, no browser would run it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_tools.report.svg import Chart
from cache_tools.runtime.text import printable
from cache_tools.version import __version__


@dataclass(frozen=True)
class Picture:
    """Pixels."""

    title: str
    data: bytes
    """A file's bytes."""
    media_type: str
    """Such as image/jpeg."""
    alt: str
    """What stands in its place for those who do not see it."""
    note: str = ""
    """What stands beneath it."""

    @property
    def base64(self) -> str:
        """The bytes as a data URL has them."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Table:
    """Numbers in rows; the first cell of a row names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    """What stands beneath it."""
    words: int = 1
    """How many columns from the left are words."""
    wide: bool = True
    """Whether it wants the whole width of a page."""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: dict[str, str]


@dataclass(frozen=True)
class Note:
    """A sentence, such as why something is not there."""

    text: str


Block = Chart | Picture | Table | Facts | Note


@dataclass(frozen=True)
class Group:
    """Blocks that belong together."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    """What to know before looking."""


@dataclass(frozen=True)
class Section:
    """What there is to say of one cache, run or sweep."""

    title: str
    kind: str
    """cache, run, runs or sweep."""
    lead: str
    """The answer, in a sentence or two."""
    groups: Sequence[Group]


def render(sections: Sequence[Section]) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cache_tools.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    names: dict[type[Any], str] = {
        Chart: "chart", Picture: "picture", Table: "table", Facts: "facts", Note: "note",
    }  # fmt: skip
    environment.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["kind"] = lambda block: names[type(block)]
    page = environment.get_template("page.html.jinja")
    return page.render(sections=sections, version=__version__)


def _printable(value: Any) -> Any:
    """Text as it may stand in a page; charts, which are markup, and numbers as they are."""
    return printable(value) if type(value) is str else value
