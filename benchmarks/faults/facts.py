"""Facts of a result that two undisturbed runs have in common: what a disturbed one is held against.

A file of bytes is one fact. A JSON file has a fact for each of its leaves, a JSONL file for each
leaf of its rows, so that a rate or a time in it does not hide the rest. What differs between two
undisturbed runs (times, rates, numbers of processes) is no fact.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
_NO_RESULT = re.compile(r"(^|/)(stdout|stderr|kept|tensorboard|.*\.lock)(/|$)|\.partial$|~$")
"""Files that are no part of a result: logs of the harness, locks, what is being written."""
_TIMES = re.compile(r"(seconds|_per_second|per_s|rate|time|wait|date|created|eta|created_at|busy)$")
"""Keys of numbers that depend on the machine, even if two runs had them alike."""
_DIGESTS = re.compile(r"digests\.json|commits/.*\.json:sha256$")
"""Digests of files, of which some have paths or times in them: the files are compared."""


def of(folder: Path, names: Sequence[str] = ()) -> Facts:
    """Collect the facts of the files in `folder` (of those that begin with one of `names`)."""
    found: Facts = {}
    here = str(folder).encode()
    for name in files(folder):
        if _NO_RESULT.search(name) or (names and not name.startswith(tuple(names))):
            continue
        data = (folder / name).read_bytes().replace(here, b"WORK")
        found |= _of_data(name, data)
    return found


def of_text(name: str, text: str) -> Facts:
    """Collect the facts of JSON that a command has printed, or of its lines."""
    return _of_data(f"{name}.json", text.encode())


def files(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def common(one: Facts, other: Facts) -> Facts:
    """Keep what two undisturbed runs agree on."""
    return {name: value for name, value in one.items() if name in other and other[name] == value}


def differences(expected: Facts, found: Facts) -> list[str]:
    """Names of facts that are not as expected."""
    return [name for name, value in expected.items() if name not in found or found[name] != value]


def _of_data(name: str, data: bytes) -> Facts:
    try:
        if name.endswith(".json"):
            return dict(_leaves(json.loads(data), name))
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in data.splitlines()]
            return dict(_leaves(rows, name))
    except ValueError:
        pass
    return {name: data}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if not _TIMES.search(str(key)):
                yield from _leaves(inner, f"{name}:{key}")
    elif not _DIGESTS.search(name):
        yield name, value
