"""The name by which the running command can be called again."""

import sys
from pathlib import Path

import pytest

from cache_tools.runtime import invocation
from pipeline.worker import failures


def installed(folder: Path) -> Path:
    folder.mkdir()
    program = folder / "kdcache"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_a_program_that_is_not_on_path_has_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = installed(tmp_path / "own"), installed(tmp_path / "other")
    monkeypatch.setattr(sys, "argv", [str(own), "cache"])
    for path, expected in (
        (own.parent, "kdcache"),
        (other.parent, str(own)),
        (tmp_path, str(own)),
    ):
        monkeypatch.setenv("PATH", str(path))
        assert invocation.program() == expected
        assert failures.command() == f"{expected} cache"
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert invocation.program() == "kdcache"
