"""Formatting of numbers in reports."""

import math
from collections.abc import Sequence


def count(number: float) -> str:
    """Format a whole number with thousands separators."""
    return f"{number:,.0f}"


def share(percent: float | None) -> str:
    """Format a share in percent; a dash if it is unset."""
    return "–" if percent is None else f"{percent:.1f} %"


def listed(words: Sequence[str], most: int = 8) -> str:
    """Join words; of many, the first."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {count(more)} more" if more > 0 else "")


def small(value: float) -> str:
    """Format a number of any size with three digits."""
    return "0" if value == 0 else f"{value:.3g}"


def brief(number: float) -> str:
    """Format a number with a suffix k, M or G from ten thousand on."""
    if abs(number) < 1e4:
        return f"{number:,.4g}"
    unit, word = next(u for u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(number) >= u[0])
    return f"{float(f'{number / unit:.3g}'):,g}{word}"


def size(number: float) -> str:
    """Format bytes in a suitable unit."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(number, 1)) // 3), len(units) - 1)
    return f"{number / 1000**power:,.{1 if power else 0}f} {units[power]}"


def duration(hours: float) -> str:
    """Format hours, short ones as minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
