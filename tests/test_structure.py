"""The layout of the source: rooms, their size and description, and a test for every module."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("kdcache", "cache_tools", "pipeline", "train")
MOST = 20
MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
ROOMS = sorted({module.parent for module in MODULES})
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def listed() -> dict[str, str]:
    """Modules in the table of tests/README.md, with the test that covers each."""
    text = (ROOT / "tests/README.md").read_text("utf-8").split("## Modules without")[1]
    rows = re.findall(r"^\| `([^`]+)/` \| ([^|]+) \| `([^`]+)` \|$", text, flags=re.M)
    return {f"{room}/{name}.py": test for room, names, test in rows for name in names.split(", ")}


def test_every_module_has_a_test_of_its_name_or_is_listed() -> None:
    named = {m for m in MODULES if (ROOT / "tests" / m.parent / f"test_{m.name}").exists()}
    assert {module.as_posix() for module in MODULES if module not in named} == set(listed())


def test_listed_tests_exist() -> None:
    assert [test for test in set(listed().values()) if not (ROOT / "tests" / test).exists()] == []


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_a_room_is_small_and_described(room: Path) -> None:
    assert sum(module.parent == room for module in MODULES) <= MOST
    assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text("utf-8")))


def test_no_test_imports_a_test() -> None:
    for file in TESTS:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                assert not any(".test_" in name for name in names), (file, names)
