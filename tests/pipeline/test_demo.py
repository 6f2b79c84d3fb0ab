"""The embedded data set and its teacher: a rerun makes again what is damaged, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.storage import seal
from pipeline import demo
from tests.helpers.outcome import Outcome


def test_a_rerun_mends(
    digits: Path,
    tmp_path: Path,
    kdcache: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, trained = shutil.copytree(digits, tmp_path / "digits"), []

    def train(data: Path, out: Path) -> float:
        trained.append(out)
        seal.write(data, f"{out.name}/model.safetensors", b"weights")
        seal.write(data, f"{out.name}/config.json", b"{}")
        return 97.0

    monkeypatch.setattr(demo, "train_teacher", train)
    for _ in range(2):
        assert kdcache("demo", folder).code == 0
    assert len(trained) == 1
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("digits-train-0000.tar", "_info.json", "teacher-model/config.json"):
        for damage in (b"", None):
            path = folder / name
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            assert kdcache("demo", folder).code == 0
            assert {path: path.read_bytes() for path in whole} == whole
    assert len(trained) == 3


def test_a_teacher_is_written_whole_or_not_at_all(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(digits, tmp_path / "digits")
    monkeypatch.setattr(demo, "EPOCHS", 1)
    demo.train_teacher(folder, folder / "teacher-model", at_least=0.0)
    names = sorted(path.name for path in (folder / "teacher-model").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert demo.is_whole(folder, "teacher-model/config.json", "teacher-model/")
    with (folder / "teacher-model" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert not demo.is_whole(folder, "teacher-model/config.json", "teacher-model/")
