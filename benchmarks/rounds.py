"""Figures of contestants that take turns: median and range over the rounds, ratios within each."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Figure = dict[str, float]
"""Median, least and most."""
T = TypeVar("T")


def play(names: Sequence[str], repeats: int, turn: Callable[[str, int], T]) -> dict[str, list[T]]:
    """Turns of each contestant (its name, the round), each round beginning with another one.

    The round before the first compiles and starts workers, and is not counted.
    """
    turns: dict[str, list[T]] = {name: [] for name in names}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            done = turn(name, number)
            if number:
                turns[name].append(done)
    return turns


def spread(values: Iterable[float]) -> Figure:
    """Median and range."""
    values = list(values)
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Ratio of the first's values to the second's, round by round."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True))


def shown(found: Figure, digits: int) -> str:
    """Median and range in words."""
    return "{median:,.{n}f} ({least:,.{n}f} to {most:,.{n}f})".format(**found, n=digits)
