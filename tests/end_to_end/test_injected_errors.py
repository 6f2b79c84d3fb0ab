"""An error of the system at any access to a file: one paragraph with the file, no traceback.

Python reports every opening, renaming and removing of a file to audit hooks, whose exception is
that of the call. A hook cannot be removed: this one does nothing outside `failing`.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import lab
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
EVENTS = ("open", "os.rename", "os.mkdir", "os.listdir", "os.scandir")
ERRORS = [
    errno.EACCES,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ESTALE,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EMFILE,
]
COMMANDS = {
    "info": "info {0}/c",
    "verify": "verify {0}/c",
    "select": "select {0}/c {0}/new --views 0",
    "pull": "pull {0}/c {0}/new",
    "push": "push {0}/c file://{0}/new --license other",
    "convert": "convert {0}/c {0}/new --to parquet",
    "merge": "merge {0}/new {0}/c {0}/c",
    "diff": "diff {0}/c {0}/c",
    "card": "card {0}/c --out {0}/new",
}
_hook: list[Callable[[str], None]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _hook and event in EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _hook[0](os.fsdecode(arguments[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def failing(folder: Path, number: int, code: int) -> Iterator[list[str]]:
    """Fail the access `number` to a file below `folder`, and all later ones to it."""
    seen: list[str] = []
    wrong: list[str] = []

    def on_access(path: str) -> None:
        if path.startswith(str(folder)):
            seen.append(path)
            if len(seen) == number or path in wrong:
                wrong.append(path)
                raise OSError(code, os.strerror(code), path)

    _hook.append(on_access)
    try:
        yield seen
    finally:
        _hook.clear()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_error_at_any_access_is_one_paragraph(
    name: str, tmp_path: Path, kdcache: Command
) -> None:
    lab.build(tmp_path / "c", lab.keys(8), range(2))
    words = COMMANDS[name].format(tmp_path).split()
    with failing(tmp_path, 0, 0) as seen:
        assert kdcache(*words).code == 0
    for i, code in enumerate(ERRORS):
        number = 1 + i * (len(seen) - 1) // (len(ERRORS) - 1)
        with failing(tmp_path, number, code):
            outcome = kdcache(*words)
        assert outcome.code in (0, 1, 2), (seen[number - 1], os.strerror(code))
        assert "Traceback" not in outcome.err, (seen[number - 1], outcome.err)
        if outcome.code:
            assert str(tmp_path) in outcome.out + outcome.err
