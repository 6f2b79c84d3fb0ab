"""Arguments of a wrong kind of the Python interface: errors that name them, not Python's."""

import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cache_tools.errors import UsageError


def several(values: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """List names or paths as text; of a single one, that one in place of its letters.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(values, str | Path):
        return (str(values),)
    if not isinstance(values, Iterable):
        raise UsageError(f"{values!r} is no path or name. Pass one, or a list of them.")
    return tuple(map(str, values))


def listed(name: str, values: Any, each: str = "") -> list[Any]:
    """List the values of an argument, of which None has none.

    Raises:
        UsageError: It is a single value; `each` describes what there is one for.
    """
    if values is None:
        return []
    if isinstance(values, Iterable) and not isinstance(values, str):
        return list(values)
    kind = "one number" if isinstance(values, numbers.Real) else "no list"
    raise UsageError(f"{name}={values!r} is {kind}. Pass a list: {each or f'{name}=[{values!r}]'}.")


def check_count(name: str, value: Any, least: int, or_none: bool = True) -> None:
    """Raise UsageError unless an argument is None or a whole number of at least `least`."""
    if not (or_none and value is None) and not (
        isinstance(value, numbers.Integral) and int(value) >= least
    ):
        raise UsageError(
            f"{name}={value!r} (--{name}) must be at least {least}, and a whole number."
        )
