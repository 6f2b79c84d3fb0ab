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

from cache_tools.storage import seal
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


@contextlib.contextmanager
def denied(path: Path) -> Iterator[None]:
    """Refuse every opening of a file, as to a user without permission."""

    def on_access(other: str) -> None:
        if other == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), other)

    _hook.append(on_access)
    try:
        yield
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


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("status", "commits/v0001/b0000.json"),
        ("verify", "samples/key/zarr.json"),
    ],
)
def test_a_file_without_permission_is_neither_missing_nor_damaged(
    command: str, name: str, tmp_path: Path, kdcache: Command
) -> None:
    lab.build(tmp_path / "c", lab.keys(8), range(2))
    with denied(tmp_path / "c" / name):
        outcome = kdcache(command, tmp_path / "c")
    assert outcome.code == 1
    assert f"{name}: Permission denied. Check" in outcome.err, outcome.err


def test_a_file_of_a_run_without_permission_is_not_damaged(tmp_path: Path) -> None:
    seal.write(tmp_path, "result.json", b"{}")
    with denied(tmp_path / "result.json"), pytest.raises(PermissionError):
        seal.check(tmp_path, "result.json")


def test_a_folder_of_records_without_permission_is_not_empty(
    tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.build(tmp_path / "c", lab.keys(8), range(2))
    stat = Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if "v0001" in path.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refused)
    outcome = kdcache("status", tmp_path / "c")
    assert (outcome.code, "Permission denied. Check" in outcome.err) == (1, True), outcome.err
