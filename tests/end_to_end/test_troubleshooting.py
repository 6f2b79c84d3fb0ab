"""The page on errors: every message that it quotes begins like one in the source."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs/guide/troubleshooting.md").read_text("utf-8")
ROWS = re.findall(r"^\| (`.+?`) \| (.+?) \| (.+?) \|$", PAGE, flags=re.M)
QUOTED = [text for first, *_ in ROWS for text in re.findall(r"`([^`]+)`", first)]


def literal(node: ast.AST) -> str | None:
    """Text of a string with … in place of each value; None of another expression."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[sd]|{}", "…", text)
        case ast.JoinedStr():
            return "".join(literal(value) or "…" for value in node.values)
    return None


def texts(tree: ast.Module) -> Iterator[str]:
    """Whole strings of a module: of an f-string, not its pieces."""
    pieces = {
        id(piece)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for piece in node.values
    }
    for node in ast.walk(tree):
        if id(node) not in pieces and (text := literal(node)) is not None:
            yield text.replace("\n", " ")


@pytest.fixture(scope="module")
def source() -> str:
    """Every string of the source, a line each."""
    files = [
        f
        for package in ("cache_tools", "pipeline", "train")
        for f in (ROOT / package).rglob("*.py")
    ]
    return "\n".join(text for f in files for text in texts(ast.parse(f.read_text("utf-8"))))


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_source(quoted: str, source: str) -> None:
    pattern = ".*".join(map(re.escape, quoted.split("…")))
    assert len(re.sub(r"\W", "", quoted)) >= 8, "too short to be one message"
    assert re.search(f"^{pattern}", source, flags=re.M)


def test_the_page_has_the_frequent_ones_once() -> None:
    assert len(QUOTED) == len(set(QUOTED)) >= 30
