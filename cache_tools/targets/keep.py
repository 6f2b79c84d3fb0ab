"""Grammar of `--keep`: the classes that an import, a mixture or a cut of a cache keeps of a view.

    k=20                    the 20 most probable classes that the source has
    tau=1e-3,k_max=64       classes above a probability, at most 64 of them
    k=20,tau=1e-2           the same as k_max=20,tau=1e-2

`max=` and `min=` stand for `k_max=` and `k_min=`. A source that has no threshold of its own (all
logits) yields exactly K classes with `k=K`; a cache with a threshold yields at most K.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from cache_tools.errors import UsageError
from cache_tools.spec.targets import TargetSpec

EXAMPLES = (
    "It is k=20 (the 20 most probable classes), or a threshold on probability and the most "
    "classes: tau=1e-3,k_max=64"
)
_ALIASES = {"max": "k_max", "min": "k_min", "t2": "temperature"}
_NUMBER: dict[str, Callable[[str], float]] = {"tau": float, "temperature": float}


@dataclass(frozen=True)
class Keep:
    """One `--keep` option; None where it does not name a value."""

    text: str
    """The option as written, for messages."""
    k: int | None = None
    """Most probable classes to keep, without a further threshold."""
    k_max: int | None = None
    """Most classes of a view."""
    k_min: int | None = None
    """Classes kept whatever their probability."""
    tau: float | None = None
    """Threshold on probability."""
    levels: int | None = None
    """Steps of the scale of probabilities."""
    temperature: float | None = None
    """Second temperature at which the mass of the other classes is stored."""

    @property
    def most(self) -> int | None:
        """Most classes of a view, by either name."""
        return self.k if self.k is not None else self.k_max


def parse(text: str, allowed: tuple[str, ...]) -> Keep:
    """Parse `--keep`, of which a command accepts the `allowed` names, fields of `Keep`.

    Raises:
        UsageError: An unknown or repeated name, or no number.
    """
    found: dict[str, float] = {}
    try:
        for item in text.split(","):
            name, _, value = item.strip().partition("=")
            name = _ALIASES.get(name, name)
            if name not in allowed:
                raise ValueError(f"{name!r} is no name of it")
            if name in found:
                raise ValueError(f"{name} is given twice")
            found[name] = _NUMBER.get(name, int)(value)
        if {"k", "k_max"} <= found.keys():
            raise ValueError("k and k_max are given")
    except ValueError as error:
        names = [field.name for field in fields(Keep) if field.name in allowed]
        raise UsageError(
            f"--keep {text} cannot be read ({error}). {EXAMPLES}; names are {', '.join(names)}."
        ) from None
    return Keep(text, **found)  # type: ignore[arg-type]


def of_all_classes(text: str, temperatures: bool = True) -> TargetSpec:
    """Sparsity that `--keep` selects where all classes of every view are known.

    Raises:
        UsageError: It cannot be read, or its numbers do not go together.
    """
    if not text:
        return TargetSpec()
    names = ("k", "k_max", "k_min", "tau", "levels", *(["temperature"] if temperatures else []))
    wanted = parse(text, names)
    exact = wanted.k is not None and wanted.tau is None
    values = {
        "k_max": wanted.most,
        "k_min": wanted.k if exact and wanted.k_min is None else wanted.k_min,
        "tau": 0.0 if exact else wanted.tau,
        "levels": wanted.levels,
        "temperatures": None if wanted.temperature is None else (1.0, wanted.temperature),
    }
    return checked(TargetSpec(), text, **values)


def checked(targets: TargetSpec, text: str, **values: Any) -> TargetSpec:
    """`targets` with other values, those that are not None; UsageError when they cannot be."""
    try:
        return replace(targets, **{n: v for n, v in values.items() if v is not None})
    except ValueError as error:
        raise UsageError(f"--keep {text} cannot be: {error} {EXAMPLES}.") from None
