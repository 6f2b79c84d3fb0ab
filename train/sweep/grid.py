"""Grid of a sweep: a TOML file becomes students, each a name and a recipe.

    base = "digits"                 # a recipe, whose keys all students have in common ...
    epochs = 5                      # ... with keys of their own over it

    [grid]                          # every combination of these values
    student = ["test_efficientnet", "test_vit"]
    temperature = [1.0, 4.0]

    [[runs]]                        # instead of a grid, or each of these with the whole grid
    name = "bold"
    lr = 1e-2

Any key of a recipe can be swept, and any argument of a table: `opt_kwargs.eps = [1e-8, 1e-6]`. A
student is named after its values: `test_vit,temperature=4`.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from cache_tools import config
from cache_tools.errors import RecipeError
from train import recipe as recipes
from train.recipe import TrainRecipe

_LONGEST = 120
"""Characters of a name; longer ones are cut and end in a digest."""


@dataclass(frozen=True)
class Student:
    """One run of a sweep."""

    name: str
    """Its folder in the sweep."""
    recipe: TrainRecipe
    """Recipe of the run."""
    values: dict[str, Any]
    """Values of the keys in which the students of the sweep differ."""


def load(grid: str, overrides: Iterable[str] = ()) -> list[Student]:
    """Read a grid by its name or path; `overrides` are key=value strings for all students.

    Raises:
        RecipeError: No such grid, nothing in it, an unknown key or an impossible value, two
            students of one name.
    """
    mapping = config.read(_path(grid), "train", overrides, TrainRecipe.ALIASES)
    context = f"grid {grid!r}"
    axes, runs = mapping.pop("grid", {}), mapping.pop("runs", [{}])
    if not isinstance(axes, Mapping):
        raise RecipeError(f"{context}: [grid] is a table of keys with lists, found {axes!r}.")
    axes = {
        (f"{key}.{argument}" if argument else key): values
        for key, found in axes.items()
        for argument, values in (found if isinstance(found, Mapping) else {"": found}).items()
    }
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise RecipeError(
                f"{context}: the grid's {key} is a list of at least one value, found {values!r}."
            )
    if not isinstance(runs, list) or not all(isinstance(run, Mapping) for run in runs) or not runs:
        raise RecipeError(f"{context}: students are listed as [[runs]], found {runs!r}.")
    names = [field.name for field in fields(TrainRecipe)]
    for key in [*mapping, *axes, *(key for run in runs for key in run if key != "name")]:
        if TrainRecipe.ALIASES.get(key, key).partition(".")[0] not in names:
            known = [*names, "grid", "runs"]
            raise RecipeError(f"{context}: unknown key {key!r}. {config.nearest(key, known)}")
    if not axes and runs == [{}]:
        raise RecipeError(
            f"{context}: nothing is swept. Give [grid] a key with a list of values, such as "
            "temperature = [1.0, 4.0], or name students under [[runs]]."
        )
    students = [
        _student(mapping, run, dict(zip(axes, values, strict=True)), context)
        for run in runs
        for values in itertools.product(*axes.values())
    ]
    for name, count in Counter(student.name for student in students).items():
        if not name or name in ("sweep.json", "sweep.csv", "sweep.png", "ray"):
            raise RecipeError(f"{context}: {name!r} is no name for a student. Choose another.")
        if count > 1:
            raise RecipeError(
                f"{context}: {count} students are named {name!r}. Remove the duplicates, or give "
                "each of the [[runs]] a name of its own."
            )
    return students


def swept(students: Iterable[Student]) -> list[str]:
    """Keys in which students differ, in the order of the grid."""
    values: dict[str, set[Any]] = {}
    students = list(students)
    for key in dict.fromkeys(key for student in students for key in student.values):
        values[key] = {plain(student.recipe.value(key)) for student in students}
    return [key for key, found in values.items() if len(found) > 1]


def _path(grid: str) -> str:
    """File of a grid, given by path or by the name of a shipped one."""
    folder = resources.files("train") / "grids"
    shipped = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))
    if grid in shipped and not Path(grid).is_file():
        return str(folder / f"{grid}.toml")
    if not Path(grid).is_file():
        raise RecipeError(
            f"there is no grid {grid!r}. {config.nearest(grid, shipped)} A path is a grid of your "
            "own; docs/guide/sweeps.md describes its keys."
        )
    return grid


def _student(
    mapping: dict[str, Any], run: dict[str, Any], values: dict[str, Any], context: str
) -> Student:
    given = {key: value for key, value in run.items() if key != "name"} | values
    own = config.canonical(given, TrainRecipe.ALIASES, context)
    resolved = dict(mapping)
    for key, value in own.items():
        table, _, argument = key.partition(".")
        resolved = config.laid_over(resolved, {table: {argument: value} if argument else value})
    recipe = recipes.build(resolved, context)
    # names keep the keys of the grid's file, so that a sweep with former names goes on
    typed = {key: recipe.value(TrainRecipe.ALIASES.get(key, key)) for key in given}
    named = {**({"name": run["name"]} if "name" in run else typed), **values}
    words = {key: _word(typed.get(key, named[key])) for key in named}
    parts = [w if key in ("name", "student") else f"{key}={w}" for key, w in words.items()]
    name = re.sub(r"[^\w.,=+-]", "-", ",".join(parts)).lstrip(".-")
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Student(name, recipe, {key: recipe.value(key) for key in own})


def plain(value: Any) -> Any:
    """Return a value of a key for tables and plots, a list or table as a word."""
    return _word(value) if isinstance(value, list | tuple | dict) else value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "+".join(f"{key}={_word(found)}" for key, found in value.items())
    if isinstance(value, list | tuple):
        return "-".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
