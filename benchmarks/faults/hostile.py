"""Hostile inputs: each is refused by name, within 30 seconds and 1 GB, without a traceback.

An input is written into an empty working folder and read by one command. Where a value is legal
(a name with escape codes), the command may succeed, but no control character reaches its output.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import process
from benchmarks.faults.outcome import Outcome

SECONDS, BYTES = 30.0, 2**30
"""Bounds of an input: seconds, and bytes beyond those of an idle process with the same imports."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SCREEN = 4000
"""Characters of the longest message."""


@dataclass
class Case:
    """A hostile input."""

    name: str
    write: Callable[[Path], object]
    """Writes it into the working folder."""
    arguments: tuple[str, ...]
    named: str
    """Words, separated by "|", of which a refusal must name one."""
    legal: bool = False
    """The command may also succeed."""
    prepare: Callable[[], None] | None = None


def attempt(case: Case, work: Path, *, idle: int) -> tuple[Outcome, int]:
    """Run a case; returns its outcome, and the bytes that it took beyond an idle process."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    case.write(work)
    ending = process.run(case.arguments, work, None, SECONDS + 15, case.prepare)
    grown = max(0, ending.peak - idle)
    told = f"{case.name}: kdcache {' '.join(case.arguments)}"
    return Outcome(_kind(case, ending, grown), told, ending), grown


def _kind(case: Case, ending: process.Ending, grown: int) -> str:
    """The first fault that holds, or how the input was met."""
    named = any(word in ending.text for word in case.named.split("|"))
    faults = {
        "hung": ending.hung or ending.seconds > SECONDS,
        "too much memory": grown > BYTES,
        "traceback": ending.traceback,
        "control characters": _CONTROL.search(ending.text),
        "longer than a screen": len(ending.stderr) > _SCREEN,
        "accepted": ending.code == 0 and case.legal,
        "silent": ending.code == 0,
        "crashed": ending.code not in (1, 2),
        "unnamed": not named,
    }
    return next((kind for kind, holds in faults.items() if holds), "refused")


def texts() -> dict[str, bytes]:
    """Return hostile texts for any file of JSON."""
    return {
        "deep lists": b"[" * 200_000,
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a number of 100,000 digits": b'{"a": ' + b"9" * 100_000 + b"}",
        "null": b"null",
        "a list": b"[1, 2]",
        "Infinity": b'{"splits": Infinity, "architecture": NaN}',
        "no UTF-8": bytes(range(128, 256)) * 4,
        "bytes of a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20_000,
        "empty": b"",
        "a key twice": b'{"a": 1, "a": 2}',
        "a lone surrogate": b'{"a": "\\ud800", "class_names": ["\\ud800"]}',
        "escape codes": b'{"\\u001b[31mred\\u0007": {"\\u001b]0;title\\u0007": 1}}',
        "60 MB of spaces": b"{" + b" " * 60_000_000 + b"}",
    }


def json_value(value: object) -> bytes:
    """Return JSON, with NaN and infinities as Python writes them."""
    return json.dumps(value).encode()
