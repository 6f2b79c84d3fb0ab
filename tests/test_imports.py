"""What importing a room costs, and that every third-party import is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("kdcache", "cache_tools", "pipeline", "train")
NOT_FOR_THE_STORE = {"cv2", "PIL", "simplejpeg", "rich", "braceexpand", "torch"}


def test_the_store_loads_no_image_library() -> None:
    files = (ROOT / "cache_tools/store").glob("[a-z]*.py")
    code = f"import sys, {', '.join(f'cache_tools.store.{file.stem}' for file in files)}"
    code += "; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not NOT_FOR_THE_STORE & set(run.stdout.split())


def imported_packages() -> set[str]:
    """Top-level packages that our modules import."""
    found = set()
    for path in (file for room in OURS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(OURS)


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=~]", item)[0].lower() for group in groups for item in group}
    installed = packages_distributions()
    names = {package: installed.get(package, [package]) for package in imported_packages()}
    assert [p for p in sorted(names) if not declared & {n.lower() for n in names[p]}] == []
