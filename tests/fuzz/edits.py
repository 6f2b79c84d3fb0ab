"""Edits of an honest file, drawn by hypothesis: of its bytes, and of the values of JSON."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.end_to_end.attacks.attacker import leaves, put

NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63)
TOKENS = (
    b"[" * 5_000, b"{" * 300, b'{"a":' * 300, b"9" * 5_000, b"1e999", b"-1", b"NaN", b"\x00",
    b"\n", b"'", b'"', b"../", b"/etc/passwd", b"{0..999999}", b"%s", b"\x1b[31m", b"\xff\xfe",
    b"\xed\xa0\x80", b"a." * 300, b"PK\x05\x06", b"file:///etc/passwd", b"0x7fffffff", b"-" * 40,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**16, 2**31, 2**40, 2**63, 2**64, 10**40, 0.5, -0.5,
    1e-308, 1e308, "", "x", "x" * 5_000, "\x1b[31mx\x07", "\u202ex", "../../x", "/etc/passwd",
    "[red]", "a" + "{0..9}" * 12, [], {}, [[]], [None], {"": None}, [0] * 300,
    ["\udcff"],
)  # fmt: skip
MOST = 2**21
"""Bytes of the largest file that edits make: what is at hand is small."""


@st.composite
def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """A file after one to four edits."""
    if data[:1] in (b"{", b"[") and draw(st.integers(0, 2)):
        try:
            return _values(draw, json.loads(data))
        except (ValueError, RecursionError):
            pass
    for _ in range(draw(st.integers(1, 4))):
        data = _bytes(draw, data)[:MOST]
    return data


def _values(draw: st.DrawFn, value: Any) -> bytes:
    """JSON with one to three other values."""
    for _ in range(draw(st.integers(1, 3))):
        if paths := list(leaves(value)):
            put(value, draw(st.sampled_from(paths)), draw(st.sampled_from(VALUES)))
    return json.dumps(value).encode()


def _bytes(draw: st.DrawFn, data: bytes) -> bytes:  # noqa: PLR0911 - an edit each
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    before, after = data[:at], data[at:]
    match draw(st.sampled_from(("bit", "number", "cut", "drop", "repeat", "token", "swap"))):
        case "bit":
            return before + bytes(b ^ 1 << draw(st.integers(0, 7)) for b in after[:1]) + after[1:]
        case "number":
            width = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)
            order = draw(st.sampled_from(("little", "big")))
            return before + number.to_bytes(width, order) + after[width:]  # type: ignore[arg-type]
        case "cut":
            return before
        case "drop":
            return before + after[draw(st.integers(1, 64)) :]
        case "repeat":
            span, times = draw(st.integers(1, 512)), 2 ** draw(st.integers(1, 12))
            return before + after[:span] * times + after
        case "token":
            return before + draw(st.sampled_from(TOKENS)) + after
        case _:
            other, span = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(1, 64))
            return before + data[other : other + span] + after[span:]
