"""Names that came from a stranger, as text that can be drawn, printed and put into a page.

A class folder or a key may be called anything: line breaks, escape codes of a terminal, marks that
turn the direction of what follows, bytes that are no text. Such characters are shown as U+FFFD.
"""

from typing import Any
from unicodedata import category

_SPACES = str.maketrans("\n\r\t", "   ")
_JOINERS = "\u200c\u200d"
"""Format characters that words of some languages and emoji are written with."""


def printable(text: str) -> str:
    """The text with a mark for each character that is not for the eye."""
    text = text.translate(_SPACES)
    return text if text.isprintable() else "".join(c if _seen(c) else "\ufffd" for c in text)


def printable_json(value: Any) -> Any:
    """The same for every text in what JSON can hold."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_json(key): printable_json(each) for key, each in value.items()}
    return [printable_json(each) for each in value] if isinstance(value, list | tuple) else value


def _seen(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or category(character) == "Zs"
