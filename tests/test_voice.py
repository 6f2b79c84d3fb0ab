"""The prose rule of CONTRIBUTING.md: docstrings, texts that a user reads, names of tests.

Caches, labels, files and networks do not speak, know, want or lie, and a first line is an
imperative or a noun phrase. Words that are wrong in nearly every sense are forbidden outright: in
first lines, in every text that a program prints or draws (help, errors, log, tables, captions,
cards), in the reference and the public docstrings, in recipes and in the Makefile's help.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import kdcache
from tests.helpers.paths import ROOT

PACKAGES = ("kdcache", "cache_tools", "pipeline", "train")
FILES = [
    file.relative_to(ROOT)
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
]
TEXTS = [
    file.relative_to(ROOT)
    for pattern in ("docs/reference/*.md", "*/recipes/*.toml", "*/grids/*.toml", "*/*/*.jinja")
    for file in sorted(ROOT.glob(pattern))
]
QUESTION = re.compile(r"(What|Whether|How|Who|Whom|Whose|Where|Which)\b")
SPEECH = (
    r"said|says?|told|tells?|ask(s|ed|ing)?|speaks?|spoke|speaking|whoever|nobody|somebody"
    r"|anybody|everybody|knows?|knew|wants?|lies"
)
FORBIDDEN = re.compile(
    rf"\b({SPEECH}|say|spoken|saw|sees|who|whom|answers?|answered|strangers?|lie|lying|stands?"
    r"|stood)\b",
    re.IGNORECASE,
)
PART_OF_THE_FORMAT = "_NOTE"
"""Texts in the specs of caches that exist."""


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Docstrings, those below fields and constants included."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as constant):
                yield constant


def texts(tree: ast.Module) -> Iterator[str]:
    """Strings of several words that are no docstrings: messages, help, captions, templates."""
    left_out = {id(constant) for constant in docstrings(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) if name == PART_OF_THE_FORMAT:
                left_out |= {id(part) for part in ast.walk(node)}
            case ast.Constant(value=str(text)) if id(node) not in left_out and " " in text.strip():
                yield text


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_voice_of_a_module(file: Path) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    lines = [str(text.value).strip().partition("\n")[0] for text in docstrings(tree)]
    assert [line for line in lines if QUESTION.match(line)] == []
    assert [line for line in lines if FORBIDDEN.search(line)] == []
    assert [text for text in texts(tree) if FORBIDDEN.search(text)] == []


@pytest.mark.parametrize("file", TEXTS, ids=str)
def test_the_voice_of_a_text(file: Path) -> None:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    assert [line for line in lines if FORBIDDEN.search(line)] == []


def test_the_voice_of_the_makefile() -> None:
    lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
    shown = [line for line in lines if "##" in line or "@echo" in line]
    assert len(shown) > 20
    assert [line for line in shown if FORBIDDEN.search(line)] == []


@pytest.mark.parametrize("name", [name for name in kdcache.__all__ if name[0] != "_"])
def test_the_voice_of_a_public_name(name: str) -> None:
    public = getattr(kdcache, name)
    members = (
        [m for key, m in vars(public).items() if key[0] != "_"] if isinstance(public, type) else []
    )
    shown = [public, *(m for m in members if isinstance(m, FunctionType | property | classmethod))]
    lines = [line for one in shown for line in (inspect.getdoc(one) or "").splitlines()]
    assert lines
    assert [line for line in lines if FORBIDDEN.search(line)] == []


def test_names_of_tests() -> None:
    words = re.compile(f"_({SPEECH})_", re.IGNORECASE)
    names = re.findall(
        r"def (test_\w+)", "\n".join(map(Path.read_text, ROOT.glob("tests/**/*.py")))
    )
    assert names
    assert [name for name in names if words.search(f"{name}_")] == []
