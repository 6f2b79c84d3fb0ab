"""Figures of contestants that take turns: median and range over the rounds, ratios within each."""

import statistics
from collections.abc import Iterable, Sequence

Figure = dict[str, float]
"""Median, least and most."""


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
