"""TOML or JSON → frozen dataclasses, strictly.

One builder serves the recipes of both stages and the `CacheSpec` of a manifest: an unknown key, a
missing key or a value of the wrong type is an error that names its table and the nearest known
key. Nothing is guessed and nothing is ignored, because a recipe's misspelt key would otherwise
cost a month of GPU time.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from cache_tools.errors import RecipeError
from cache_tools.file_contents import MAX_TOML, parse_toml, read_text

T = TypeVar("T")
MAX_BASES = 8
_LISTS = (list, tuple)


class Kwargs(dict[str, Any]):
    """Keyword arguments of a library's function: a table of a recipe whose keys are the library's.

    Values are those of TOML and JSON: booleans, numbers, words and lists of them. As a field of a
    frozen dataclass it is not to be changed, and equal tables have equal hashes.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))


def canonical(
    mapping: Mapping[str, Any], aliases: Mapping[str, str], context: str
) -> dict[str, Any]:
    """Rename keys that have a newer name; RecipeError when both are given."""
    for old, new in aliases.items():
        if old in mapping and new in mapping:
            raise RecipeError(
                f"{context}: both {new} and its former name {old} are given. Pass {new} only."
            )
    return {aliases.get(key, key): value for key, value in mapping.items()}


def read(
    recipe: str | Path | Mapping[str, Any],
    package: str,
    overrides: Iterable[str] = (),
    aliases: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Read the keys of a recipe and of those it is based on; see `load`."""
    mapping, overrides = _with_base(recipe, package, (), aliases), list(overrides)
    canonical({item.partition("=")[0].strip(): item for item in overrides}, aliases, "overrides")
    for item in overrides:
        _override(mapping, item, aliases)
    return mapping


def names(package: str) -> list[str]:
    """List the recipes of `package` ("pipeline" or "train") by name, sorted."""
    folder = resources.files(package) / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load(
    cls: type[T],
    recipe: str | Path | Mapping[str, Any] | T,
    package: str,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] = types.MappingProxyType({}),
) -> T:
    """Read a recipe.

    Args:
        cls: The frozen dataclass to build.
        recipe: Name of a recipe of `package`, path of a TOML file, its contents, or a built one.
        package: Package whose `recipes` folder is searched for the name.
        overrides: `key=value` or `table.key=value` strings, values in TOML; a bare word is a
            string. They win over the file.
        values: The same as values of Python, by `key` or `table.key`.

    Raises:
        RecipeError: No such recipe, broken TOML, an unknown key or an impossible value.
    """
    if isinstance(recipe, cls):  # checked as all others: Python checks no type
        recipe = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    if not isinstance(recipe, str | Path | Mapping):
        raise RecipeError(f"expected a recipe (name, file, dict, {cls.__name__}), got {recipe!r}.")
    if not isinstance(values, Mapping):
        raise RecipeError(f"expected a dict of keys of a recipe, got {values!r}.")
    mapping = read(recipe, package, overrides, _aliases(cls))
    for key, value in canonical(values, _aliases(cls), "values").items():
        tables = reversed(str(key).split("."))
        mapping = laid_over(mapping, functools.reduce(lambda of, t: {t: of}, tables, value))
    return build(cls, mapping, _named(recipe))


def _named(recipe: str | Path | Mapping[str, Any]) -> str:
    return "the recipe" if isinstance(recipe, Mapping) else f"recipe {str(recipe)!r}"


def build(cls: type[T], mapping: Mapping[str, Any], context: str) -> T:
    """Build the dataclass `cls` from `mapping`; error messages begin with `context`."""
    assert dataclasses.is_dataclass(cls)
    mapping = canonical(mapping, _aliases(cls), context)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            raise RecipeError(f"{context}: unknown key {key!r}. {nearest(key, fields)}")
    for name, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in mapping and not optional:
            raise RecipeError(f"{context}: the key {name!r} is missing.")
    values = {key: _value(hints[key], value, f"{context}: {key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{context}: {error}") from None


def _aliases(cls: type) -> Mapping[str, str]:
    """Former names of keys, each with the field it became."""
    aliases: Mapping[str, str] = getattr(cls, "ALIASES", {})
    return aliases


def _with_base(
    recipe: str | Path | Mapping[str, Any],
    package: str,
    above: tuple[str, ...],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """Read a recipe and lay it over its base; `above` are the recipes based on it."""
    name, found = _named(recipe), recipe
    if not isinstance(found, Mapping):
        text = _read(str(recipe), package)
        try:
            found = parse_toml(text)
        except ValueError as error:
            shorter = "Keep only keys that differ from the defaults, or from its base's."
            fix = shorter if len(text) > MAX_TOML else "Correct the file."
            raise RecipeError(f"{name} cannot be read as TOML: {error}. {fix}") from None
    mapping = canonical(found, aliases, name)
    if (base := mapping.pop("base", None)) is None:
        return mapping
    if not isinstance(base, str):
        raise RecipeError(f"{name}: base is the name of a recipe, found {base!r}.")
    if base.endswith(".toml") and not isinstance(recipe, Mapping):
        base = str(Path(recipe).parent / base)
    chain = (*above, str(recipe))
    if base in chain or len(chain) > MAX_BASES:
        raise RecipeError(f"recipes are based on each other: {' on '.join((*chain, base))}.")
    return laid_over(_with_base(base, package, chain, aliases), mapping)


def laid_over(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` over `below`, tables key by key."""
    result = dict(below)
    for key, value in over.items():
        there = result.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            result[key] = laid_over(there, value)
        else:
            result[key] = value
    return result


def _read(recipe: str, package: str) -> str:
    path = Path(recipe)
    if path.suffix == ".toml" or path.is_file():
        try:
            return read_text(path)
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"cannot read the recipe {recipe}: {error}. Check the path and its permissions; a "
                "recipe is TOML in UTF-8."
            ) from None
    known = names(package)
    if recipe not in known:
        _check_stage(recipe, package)
        raise RecipeError(
            f"there is no recipe {recipe!r}. {nearest(recipe, known)} "
            "A path that ends in .toml is a recipe of your own."
        )
    return (resources.files(package) / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")


def _check_stage(recipe: str, package: str) -> None:
    """Refuse a recipe of the other stage: several students share a cache, and so its recipe.

    Raises:
        RecipeError: `recipe` belongs to the other stage.
    """
    if package == "pipeline" and recipe in names("train"):
        cache = read(recipe, "train").get("cache_recipe", recipe)
        raise RecipeError(
            f"{recipe} is a recipe of stage 2. Its cache is that of the recipe {cache}, which it "
            f"shares: kdcache plan {cache}, kdcache cache {cache} …"
        )
    if package == "train" and recipe in names("pipeline"):
        users = [n for n in names("train") if read(n, "train").get("cache_recipe") == recipe]
        raise RecipeError(
            f"{recipe} is a recipe of stage 1. Recipes for students of its cache: "
            f"{', '.join(users)}."
        )


def _override(mapping: dict[str, Any], item: str, aliases: Mapping[str, str]) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{item!r} is not of the form key=value, such as epochs=10.")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    except ValueError as error:
        raise RecipeError(
            f"the value of {key.strip()!r} cannot be: {error}. Pass another."
        ) from None
    *tables, leaf = key.strip().split(".")
    for table in tables:
        mapping = mapping.setdefault(table, {})
        if not isinstance(mapping, dict):
            raise RecipeError(f"{item!r}: {table!r} is not a table of the recipe.")
    mapping[leaf if tables else aliases.get(leaf, leaf)] = value


def nearest(key: str, known: Iterable[str]) -> str:
    """List the known names for an error message, the one nearest to `key` first."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}Known are: {', '.join(known)}."


def keys(cls: type) -> list[str]:
    """List the keys of a recipe as overrides name them; those of tables have dots."""
    hints, found = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        inner = keys(hint) if dataclasses.is_dataclass(hint) else []  # type: ignore[arg-type]
        found += [f"{field.name}.{key}" for key in inner] or [field.name]
    return found


def _value(hint: Any, value: Any, context: str) -> Any:
    """Convert `value` to the annotated type `hint`; RecipeError when it is of another."""
    value = _of_python(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Kwargs or (dataclasses.is_dataclass(hint) and isinstance(hint, type)):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{context}: expected a table, found {value!r}.")
        if hint is Kwargs:
            value = {key: _argument(found, f"{context}.{key}") for key, found in value.items()}
        return Kwargs(value) if hint is Kwargs else build(hint, value, context)
    if origin is tuple:
        return _tuple(args, value, context)
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"{context}: {value!r} is not one of {', '.join(map(repr, args))}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        fits = [a for a in kinds if isinstance(value, _LISTS) == (typing.get_origin(a) is tuple)]
        return _value((fits or kinds)[0], value, context)
    return _scalar(hint, value, context)


def _of_python(value: Any) -> Any:
    """Convert a number of NumPy to Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _argument(value: Any, context: str) -> Any:
    """Check a value of `Kwargs`."""
    value = _of_python(value)
    if isinstance(value, list | tuple):
        return [_argument(found, f"{context}[{i}]") for i, found in enumerate(value)]
    if type(value) not in (bool, int, float, str):
        out = " Leave the key out: a recipe has no None." if value is None else ""
        raise RecipeError(
            f"{context}: expected a number, a word or a list of them, found {value!r}.{out}"
        )
    return _scalar(type(value), value, context)


def _tuple(args: tuple[Any, ...], value: Any, context: str) -> tuple[Any, ...]:
    if not isinstance(value, _LISTS):
        raise RecipeError(f"{context}: expected a list, found {value!r}.")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise RecipeError(f"{context}: expected {len(args)} values, found {len(value)}.")
    return tuple(
        _value(a, v, f"{context}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
    )


def _scalar(hint: Any, value: Any, context: str) -> Any:
    if hint is float and type(value) is int:
        if abs(value) > 2**1000:
            raise RecipeError(f"{context}: the number is too large.")
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise RecipeError(f"{context}: expected a finite number, found {value}.")
    if hint is str and type(value) is str and not value.isprintable():
        raise RecipeError(f"{context}: {value!r} has characters that cannot be printed.")
    if type(value) is not hint:
        raise RecipeError(f"{context}: expected {hint.__name__}, found {value!r}.")
    return value


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field may have: `Annotated[float, Range(0, 1)]`; NaN and words are in none."""

    least: float
    most: float
    excluded: Literal["", "least", "most"] = ""
    """The end that is not in the range."""

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real):
            return False
        number: Any = value
        inside = bool(self.least <= number <= self.most)
        return inside and (not self.excluded or value != getattr(self, self.excluded))

    def __str__(self) -> str:
        ends = {"least": ("above", "at most"), "most": ("at least", "below")}
        low, high = ends.get(self.excluded, ("at least", "at most"))
        return f"{low} {self.least:,} and {high} {self.most:,}"


def changed(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Select the values of a table that differ from the defaults of its dataclass `cls`."""
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(cls)
    }

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {n: v for n, v in values.items() if n not in defaults or plain(v) != plain(defaults[n])}


def check_ranges(recipe: Any) -> None:
    """Raise ValueError unless every field of a dataclass is within its `Range`."""
    for name, hint in typing.get_type_hints(type(recipe), include_extras=True).items():
        for bound in getattr(hint, "__metadata__", ()):
            value = getattr(recipe, name)
            check(value in bound, f"{name} must be {bound}, found {value!r}; pass such a number")


def check(holds: bool, message: str) -> None:
    """Raise ValueError unless `holds`; `build` prepends the key of the value."""
    if not holds:
        raise ValueError(message + ".")
