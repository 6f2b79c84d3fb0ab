"""The prose rule of CONTRIBUTING.md: docstrings, texts that a user reads, names of tests.

Caches, labels, files and networks do not speak, know, want or lie, and a first line is an
imperative or a noun phrase. Words that are wrong in nearly every sense are forbidden outright.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FILES = [
    file.relative_to(ROOT)
    for package in ("kdcache", "cache_tools", "pipeline", "train")
    for file in sorted((ROOT / package).rglob("*.py"))
]
QUESTION = re.compile(r"(What|Whether|How|Who|Whom|Whose|Where|Which)\b")
FORBIDDEN = re.compile(
    r"\b(said|says?|told|tells?|ask(s|ed|ing)?|speaks?|spoke|speaking|whoever|nobody|somebody"
    r"|anybody|everybody|knows?|knew|wants?|lies)\b",
    re.IGNORECASE,
)


def first_lines(tree: ast.Module) -> Iterator[str]:
    """First lines of docstrings, those below fields and constants included."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text.strip().partition("\n")[0]


def messages(tree: ast.Module) -> Iterator[str]:
    """Literal text of errors, log lines, printed lines and help."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        shown = name.endswith("Error") or name.startswith(("log.", "typer.")) or name == "print"
        if shown or name.split(".")[-1] in ("CacheMismatch", "CacheDamaged", "CacheIncomplete"):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_voice_of_a_module(file: Path) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    lines = list(first_lines(tree))
    assert [line for line in lines if QUESTION.match(line)] == []
    assert [line for line in lines if FORBIDDEN.search(line)] == []
    assert [text for text in messages(tree) if FORBIDDEN.search(text)] == []


def test_names_of_tests() -> None:
    words = re.compile(f"_{FORBIDDEN.pattern[2:-2]}_", re.IGNORECASE)
    names = re.findall(
        r"def (test_\w+)", "\n".join(map(Path.read_text, ROOT.glob("tests/**/*.py")))
    )
    assert names
    assert [name for name in names if words.search(f"{name}_")] == []
