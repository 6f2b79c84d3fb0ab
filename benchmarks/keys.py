"""Keys of the recipes of stage 2: docs/keys.md, from the docstrings of `train/recipe.py`.

python -m benchmarks.keys
"""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

from train import recipe
from train.recipe import TrainRecipe

DOCUMENT = Path(__file__).parents[1] / "docs/keys.md"
_HEADER = """# Keys of a recipe of stage 2

Made by `python -m benchmarks.keys` from `train/recipe.py`. Each can be given on the command line
(`kdcache train digits lr=1e-3`), in a TOML file and in a grid; arguments of a table as
`opt_kwargs.betas="[0.9, 0.95]"`.

| key | default | |
|---|---|---|
"""


def text() -> str:
    """The page: each field with its default and its docstring."""
    [cls] = [
        node
        for node in ast.parse(inspect.getsource(recipe)).body
        if isinstance(node, ast.ClassDef) and node.name == TrainRecipe.__name__
    ]
    found = {
        field.target.id: ast.literal_eval(said.value)
        for field, said in zip(cls.body, cls.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr)
    }
    rows = []
    for field in dataclasses.fields(TrainRecipe):
        default = "" if field.default in ("", dataclasses.MISSING) else f"`{field.default}`"
        said = re.sub(r"\s+", " ", found[field.name]).replace("|", "\\|")
        rows.append(f"| `{field.name}` | {default} | {said} |\n")
    return _HEADER + "".join(rows)


if __name__ == "__main__":
    DOCUMENT.write_text(text(), encoding="utf-8")
