"""Untrusted names as text that can be drawn, printed and put into a page.

The name of a class folder or a key may contain anything: line breaks, escape codes of a terminal,
marks that turn the writing direction, bytes that are no text. Such characters become U+FFFD.
"""

from typing import Any
from unicodedata import category

_SPACES = str.maketrans("\n\r\t", "   ")
_MOST_LINES, _MOST_CHARACTERS = 20, 2_000
"""Of a message: a screen."""
_JOINERS = "\u200c\u200d"
"""Format characters of some scripts and of emoji."""


def printable(text: str) -> str:
    """Replace each unprintable character by U+FFFD, and line breaks by spaces."""
    text = text.translate(_SPACES)
    return (
        text if text.isprintable() else "".join(c if _is_printable(c) else "\ufffd" for c in text)
    )


def counted(number: float, noun: str) -> str:
    """Format a number of things: 1 part, 2 parts, 1,000 classes; `noun` is a singular."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "tch", "nch")) else "s"
    return f"{number:,} {noun}{ending}"


def singular(plural: str) -> str:
    """Return the noun of which `counted` makes a plural: part, class, batch."""
    ending = "es" if plural.endswith(("sses", "ches")) else "s"
    return plural.removesuffix(ending)


def message(text: str) -> str:
    """Shape an error or a line of a log for a terminal: a screen at most, the middle left out.

    Characters that a terminal would act upon are shown as escapes.
    """
    lines = text.split("\n")
    if (more := len(lines) - _MOST_LINES) > 0:
        half = _MOST_LINES // 2
        lines[half : 1 - half] = [f"… {more + 1:,} more lines …"]
    text = "\n".join(lines)
    if (more := len(text) - _MOST_CHARACTERS) > 0:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} … {more:,} more characters … {text[-half:]}"
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c in "\n\t" or _is_printable(c) else c.encode("unicode_escape").decode() for c in text
    )


def printable_json(value: Any) -> Any:
    """Apply `printable` to every string of a JSON value, keys included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_json(key): printable_json(each) for key, each in value.items()}
    return [printable_json(each) for each in value] if isinstance(value, list | tuple) else value


def _is_printable(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or category(character) == "Zs"
