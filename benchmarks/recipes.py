"""Recipes beside the authors' values: docs/recipes.md, from the TOML files and `authors.toml`.

    python -m benchmarks.recipes

A key equals the authors', or the recipe's header declares the deviation in the words that
`authors.toml` names; anything else raises ValueError. So does a key of a recipe without a value of
the authors, unless it is one of `OURS`.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from cache_tools import config
from pipeline import recipe as caching
from train import recipe as training

DOCUMENT = Path(__file__).parents[1] / "docs/recipes.md"
OURS = {
    *("base", "cache_recipe", "min_views", "batch_size", "views_per_decode", "expected_kept"),
    *("block_size", "dataset.num_samples", "dataset.num_classes", "views.pair_views"),
    *("views.seed", "targets.temperatures"),
}
"""Keys without an effect on what is learned, or that no other code has."""
_HEADER = """# Recipes beside their sources

Made by `python -m benchmarks.recipes` from the recipes and `benchmarks/authors.toml`. The last
column of a table has the words in a recipe's header that declare the deviation.
`tests/benchmarks/test_recipes.py` compares this page with the recipes.
"""


def authors(name: str) -> dict[str, Any]:
    """Read the authors' values of a recipe, laid over those of its base."""
    values: dict[str, Any] = tomllib.loads((Path(__file__).parent / "authors.toml").read_text())
    own = values[name]
    return config.laid_over(authors(own["base"]), own) if "base" in own else dict(own)


def header(package: str, name: str) -> str:
    """Read a recipe's header, with the headers of the recipes whose deviations it adopts."""
    text = (resources.files(package) / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    own = " ".join(" ".join(line.strip("# ") for line in lines).split())
    adopted = re.findall(r"(?:those of|see|as in) ([\w-]+-[\w-]+)", own)
    known = [other for other in config.names(package) if other in adopted and other != name]
    return " ".join([own, *(header(package, other) for other in known)])


def rows(package: str, name: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield key, the authors' value, ours and "" or the header's words, of each key.

    Raises:
        ValueError: A deviation that the header does not declare, or a key without a row.
    """
    stage = "train" if package == "train" else "cache"
    theirs, text = authors(name), header(package, name)
    load = training.load if stage == "train" else caching.load
    ours = dict(_flat(asdict(load(name))))
    for key, value in theirs.get(stage, {}).items():
        wanted, words = (
            (value["theirs"], value["header"]) if isinstance(value, dict) else (value, "")
        )
        own = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        if (own == wanted) == bool(words) or words not in text:
            raise ValueError(
                f"{package}/recipes/{name}.toml: {key} is {own!r}, the authors have {wanted!r}; "
                f"the deviation that its header declares (authors.toml): {words or 'none'}."
            )
        yield key, wanted, own, words
    for key, pair in theirs.get("other", {}).get(stage, {}).items():
        if pair and pair[1] not in text:
            raise ValueError(f"{package}/recipes/{name}.toml: {pair[1]!r} is not in the header.")
        if pair:
            yield key, pair[0], "", pair[1]
    for key in set(dict(_flat(config.read(name, package)))) - OURS - set(theirs.get(stage, {})):
        raise ValueError(f"authors.toml has no value for {key} of {package}/recipes/{name}.toml.")


def document() -> str:
    """Return the page of all recipes."""
    text = [_HEADER]
    for package, title in (("train", "Students"), ("pipeline", "Caches")):
        text.append(f"\n## {title}\n")
        for name in config.names(package):
            if name in ("digits", "photos"):
                continue
            found = list(rows(package, name))
            same = [f"{key} {_shown(own)}" for key, _, own, words in found if not words]
            text.append(f"\n### `{name}`\n\nSource: {authors(name)['source']}.\n")
            text.append(f"\nThe same: {', '.join(same)}.\n\n| key | theirs | ours | header |\n")
            text.append("|---|---|---|---|\n")
            text += [
                f"| {key} | {_shown(wanted)} | {_shown(own)} | {words} |\n"
                for key, wanted, own, words in found
                if words
            ]
    return "".join(text)


def _flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    """Value as a recipe has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
