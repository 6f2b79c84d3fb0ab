"""Recipe keys written as options: `--epochs 2` in place of `epochs=2`, refused with the remedy."""

import difflib
import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from typer.core import TyperCommand

from cache_tools import config
from cache_tools.errors import UsageError


@dataclass(frozen=True)
class KeysOf:
    """Mark of a command's argument KEY=VALUE: the recipe whose keys these are."""

    recipe: str
    """Module and class, imported when a key is looked for."""

    def keys(self) -> dict[str, str]:
        """Every spelling of a key → the key: its name, its last part, its former name."""
        module, _, name = self.recipe.partition(":")
        cls = getattr(import_module(module), name)
        known = config.keys(cls)
        parts = [key.rpartition(".")[2] for key in known]
        last = {part: key for part, key in zip(parts, known, strict=True) if parts.count(part) == 1}
        return last | dict(getattr(cls, "ALIASES", {})) | {key: key for key in known}


class Command(TyperCommand):
    """Command that explains a recipe key given as an option; its help fills a terminal's width."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        paragraphs = [" ".join(part.split("\n")) for part in (help or "").split("\n\n")]
        super().__init__(*args, help="\n\n".join(paragraphs), **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: One is a recipe key, written as an option.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # of typer's own copy of click, or of click itself
            if type(error).__name__ == "NoSuchOption":
                self._explain(error, given)
            raise

    def _explain(self, error: Any, given: Sequence[str]) -> None:
        if (of := _keys_of(self.callback)) is None:
            return
        option, keys = str(error.option_name), of.keys()
        spelling = option.lstrip("-").replace("-", "_")
        if spelling not in keys:
            options = [name.lstrip("-") for name in error.possibilities or ()]
            near = difflib.get_close_matches(spelling, [*options, *keys], n=1, cutoff=0.8)
            if not near or near[0] in options:
                return
            spelling = near[0]
        raise UsageError(
            f"{option} is no option of kdcache {self.name}. Recipe keys are written without "
            f"dashes: {keys[spelling]}={_value(option, given)}."
        ) from None


def _keys_of(callback: Any) -> KeysOf | None:
    hints = typing.get_type_hints(inspect.unwrap(callback), include_extras=True)
    marks = [mark for hint in hints.values() for mark in getattr(hint, "__metadata__", ())]
    return next((mark for mark in marks if isinstance(mark, KeysOf)), None)


def _value(option: str, given: Sequence[str]) -> str:
    """Value that follows an option; "…" where there is none."""
    for i, item in enumerate(given):
        if item.startswith(f"{option}="):
            return item.partition("=")[2]
        if item == option and i + 1 < len(given) and not given[i + 1].startswith("--"):
            return given[i + 1]
    return "…"
