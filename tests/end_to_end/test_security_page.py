"""The page on security names tests that exist, and limits that are those of the code."""

import importlib
import re

import pytest

from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs/security.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Rows of the table below a heading, by cells."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.+) \|$", section, flags=re.M)
    return [re.split(r"(?<!\\) \| ", line) for line in lines[1:]]


@pytest.mark.parametrize(("promise", "tests"), rows("Promised"))
def test_every_promise_has_tests(promise: str, tests: str) -> None:
    named = re.findall(r"`([^`]+)::(\w+)`", tests)
    assert named, promise
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), (promise, file, test)


@pytest.mark.parametrize(("what", "limit", "constant"), rows("Limits"))
def test_limits_are_those_of_the_code(what: str, limit: str, constant: str) -> None:
    module, _, name = constant.strip("`").rpartition(".")
    found = re.match(r"[\d,]+", limit)
    assert found, what
    assert getattr(importlib.import_module(module), name) == int(found[0].replace(",", "")), what


def test_the_readme_links_the_page() -> None:
    assert "(docs/security.md)" in (ROOT / "README.md").read_text("utf-8")
