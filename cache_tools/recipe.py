"""TOML or JSON → frozen dataclasses, strictly.

One builder serves the recipes of both stages and the `CacheSpec` of a manifest: an unknown key, a
missing key or a value of the wrong type is an error that names the place and the nearest known
key. Nothing is guessed and nothing is ignored, because a recipe's misspelt key would otherwise
cost a month of GPU time.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from cache_tools.errors import RecipeError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Names of the recipes that come with `package` ("pipeline" or "train"), sorted."""
    folder = resources.files(package) / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load(cls: type[T], recipe: str, package: str, overrides: Iterable[str] = ()) -> T:
    """Read a recipe.

    Args:
        cls: The frozen dataclass to build.
        recipe: Name of a recipe of `package`, or path of a TOML file.
        package: Package whose `recipes` folder is searched for the name.
        overrides: `key=value` or `table.key=value` strings, values in TOML; a bare word is a
            string. They win over the file.

    Raises:
        RecipeError: No such recipe, broken TOML, an unknown key or an impossible value.
    """
    text = _read(recipe, package)
    try:
        mapping = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {recipe!r} is not valid TOML: {error}.") from None
    for item in overrides:
        _override(mapping, item)
    return build(cls, mapping, f"recipe {recipe!r}")


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from `mapping`; `where` says in messages what was being read."""
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}. {_nearest(key, fields)}")
    for name, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in mapping and not optional:
            raise RecipeError(f"{where}: the key {name!r} is missing.")
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _read(recipe: str, package: str) -> str:
    path = Path(recipe)
    if path.suffix == ".toml" or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {recipe}: {error}.") from None
    known = names(package)
    if recipe not in known:
        raise RecipeError(
            f"there is no recipe {recipe!r}. {_nearest(recipe, known)} "
            "A path that ends in .toml is a recipe of your own."
        )
    return (resources.files(package) / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")


def _override(mapping: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{item!r} is not of the form key=value, such as epochs=10.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, leaf = key.strip().split(".")
    for table in tables:
        mapping = mapping.setdefault(table, {})
        if not isinstance(mapping, dict):
            raise RecipeError(f"{item!r}: {table!r} is not a table of the recipe.")
    mapping[leaf] = value


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}Known are: {', '.join(known)}."


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a RecipeError that says what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: expected a table, found {value!r}.")
        return build(hint, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    return _scalar(hint, value, where)


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{where}: expected a list, found {value!r}.")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise RecipeError(f"{where}: expected {len(args)} values, found {len(value)}.")
    return tuple(
        _value(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        if abs(value) > 2**1000:
            raise RecipeError(f"{where}: a number of that size cannot be.")
        return float(value)
    if hint is str and type(value) is str and not value.isprintable():
        raise RecipeError(f"{where}: {value!r} has characters that cannot be printed.")
    if type(value) is not hint:
        raise RecipeError(f"{where}: expected {hint.__name__}, found {value!r}.")
    return value
