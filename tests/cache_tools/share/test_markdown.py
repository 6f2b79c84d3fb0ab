"""Names of others stay text in Markdown, whatever renders it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cache_tools.runtime.text import printable
from cache_tools.share import markdown

HOSTILE = [
    "a` [click](https://evil.example) `b",
    "``` `` `",
    "`",
    " spaces ",
    "x\n\n# heading\n<script>alert(1)</script>",
    "![i](javascript:alert(1)) <img src=x onerror=alert(1)>",
    "a | b || **bold** _em_ ~~no~~ &amp; \\",
    "\x1b[31mred\u202egnp.exe",
    "www.evil.example https://evil.example someone@evil.example",
]
names = st.one_of(st.sampled_from(HOSTILE), st.text("`|*_<>[]()!#&\\ aw.:/@\n", max_size=20))


def inline(text: str) -> list[Token]:
    """The tokens within the only cell of a table that has content."""
    table = MarkdownIt().enable("table").parse(f"| | |\n|---|---|\n| name | {text} |\n")
    cells = [token for token in table if token.type == "inline"]
    assert [cell.content for cell in cells[:3]] == ["", "", "name"]
    assert len(cells) == 4
    return cells[3].children or []


@given(names)
def test_a_code_span_contains_the_name(name: str) -> None:
    [token] = inline(markdown.code(name))
    assert token.type == "code_inline"
    assert token.content.strip() == printable(name).replace("|", "\u00a6").strip()


@given(names.filter(str.strip))
def test_text_has_no_markup(name: str) -> None:
    tokens = inline(f"of {markdown.text(name)}.")
    assert {token.type for token in tokens} == {"text"}
    assert "".join(token.content for token in tokens) == f"of {printable(name)}."
    assert "www." not in markdown.text(name)
    assert "://" not in markdown.text(name)


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "ImageNet-1k (train), 224 px"])
def test_plain_names_are_unchanged(name: str) -> None:
    assert markdown.text(name) == name
    assert markdown.code(name) == f"`{name}`"
