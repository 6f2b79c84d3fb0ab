"""Settings of torch's backends, as timm's scripts set them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.fake_gpu import CUDA
from train import api, backends

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(backends.WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(backends.WORKSPACE)
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])
    torch.use_deterministic_algorithms(False)


def test_a_gpu_takes_the_fastest_algorithms_and_tf32() -> None:
    backends.configure(CUDA)
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32
    assert backends.WORKSPACE not in os.environ


def test_a_cpu_has_no_setting_of_gpus() -> None:
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    backends.configure(CPU)
    assert not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"


def test_deterministic_runs_choose_no_algorithm_by_time_and_fix_the_workspace_of_cublas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.backends.cudnn.benchmark = True
    backends.configure(CUDA, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ[backends.WORKSPACE] == ":4096:8"
    monkeypatch.setenv(backends.WORKSPACE, ":16:8")
    backends.configure(CUDA, deterministic=True)
    assert os.environ[backends.WORKSPACE] == ":16:8"  # set by the user
    backends.configure(CUDA)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_deterministic_runs_are_equal(digits_cache: Path, tmp_path: Path, device: str) -> None:
    values = {"epochs": 1, "views_per_epoch": 1, "batch_size": 40, "deterministic": True}
    for name in ("a", "b"):
        api.fit("digits", cache=digits_cache, out=tmp_path / name, device=device, values=values)
    assert os.environ[backends.WORKSPACE] == ":4096:8"
    one, other = (load_file(tmp_path / n / "model/model.safetensors") for n in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)
