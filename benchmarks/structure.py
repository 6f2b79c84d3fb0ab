"""Size and shape of the source: lines, imports, rooms, functions that are called once.

    python -m benchmarks.structure [ROOT] [--json FILE]

Lines are those with code or docstrings, without blank lines and comments. A private function is
"called once" when its name is read once in its own module, where alone it is visible.
"""

import ast
import io
import json
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

PACKAGES = ("cache_tools", "pipeline", "train")
FUNCTIONS = ("functions", "private_functions_called_once", "of_these_up_to_5_lines")
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def lines(source: str) -> int:
    """Lines of a module that are neither blank nor comments alone."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE and token.type != tokenize.ENDMARKER:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found)


def imports(source: str) -> int:
    """Lines of a module's import statements."""
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    return sum((n.end_lineno or n.lineno) - n.lineno + 1 for n in found)


def functions(source: str) -> tuple[int, int, int]:
    """Functions of a module: all, private ones read once, and those of them up to 5 lines."""
    tree = ast.parse(source)
    defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    read = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    )
    once = [
        f
        for f in defined
        if f.name.startswith("_") and not f.name.endswith("__") and read[f.name] == 1
    ]
    short = [f for f in once if (f.end_lineno or f.lineno) - f.lineno + 1 <= 5]
    return len(defined), len(once), len(short)


def measure(root: Path) -> dict[str, object]:
    """Facts about the packages under `root`."""
    total: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            source = file.read_text(encoding="utf-8")
            counts = Counter(dict(zip(FUNCTIONS, functions(source), strict=True)))
            total.update(counts, lines=lines(source), of_these_imports=imports(source))
            if file.name != "__init__.py":
                folders[file.parent.relative_to(root).as_posix()] += 1
    largest, modules = folders.most_common(1)[0]
    return {
        "modules": sum(folders.values()),
        "folders": len(folders),
        "largest_folder": {"name": largest, "modules": modules},
        **total,
    }


def main(
    root: Annotated[Path, typer.Argument(help="Root of a checkout.")] = Path(),
    json_: Annotated[Path | None, typer.Option("--json", help="Write the facts here.")] = None,
) -> None:
    """Print the size and shape of the source."""
    facts = measure(root)
    text = json.dumps(facts, indent=2)
    if json_:
        json_.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    typer.run(main)
