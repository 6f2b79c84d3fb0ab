"""Paths as users write them."""

from pathlib import Path

import pytest

from cache_tools.storage import paths
from cache_tools.storage.disk_cache import DiskCache


def test_a_leading_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    monkeypatch.chdir(tmp_path)
    assert paths.expand("~/run") == "/home/lab/run"
    assert paths.expand("a~/run") == "a~/run"
    (tmp_path / "~x").mkdir()
    assert paths.expand("~x") == "~x"


def test_a_folder_with_characters_of_patterns_is_itself(tmp_path: Path) -> None:
    (tmp_path / "set [1] {a,b}").mkdir()
    pattern = f"{tmp_path}/set [1] {{a,b}}/train-{{0..3}}.tar"
    assert paths.split_pattern(pattern) == (tmp_path / "set [1] {a,b}", "train-{0..3}.tar")
    assert paths.split_pattern(f"{tmp_path}/{{a,b}}/*.tar") == (tmp_path, "{a,b}/*.tar")


def test_the_data_folder_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KDCACHE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no entry")))
    assert "~" not in str(DiskCache().path)
