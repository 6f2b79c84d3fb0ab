"""Grids written to files, and an undisturbed sweep of twelve students."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.sweeps import sweep_command


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, name: str = "grid.toml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


TWELVE = """
base = "digits"
epochs = 2
views_per_epoch = 1
batch_size = 10
model_ema_decay = 0.0
checkpoint_minutes = 0.005
[grid]
student = ["test_efficientnet", "test_byobnet", "test_vit"]
temperature = [1.0, 4.0]
seed = [0, 1]
"""


@pytest.fixture(scope="session")
def undisturbed(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twelve")
    (folder / "grid.toml").write_text(TWELVE)
    subprocess.run(
        sweep_command(folder, digits_cache, folder / "out"), check=True, capture_output=True
    )
    return folder
