"""Settings of torch's backends, as timm's scripts set them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache_tools.runtime.signals import StopRequest
from tests.helpers.fake_gpu import CUDA
from train import api, backends

CPU = torch.device("cpu")
VALUES = {"epochs": 1, "views_per_epoch": 1, "batch_size": 40, "deterministic": True}


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


def equal(*runs: Path, network: str = "model") -> bool:
    one, other = (load_file(run / network / "model.safetensors") for run in runs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_deterministic_runs_are_equal(digits_cache: Path, tmp_path: Path, device: str) -> None:
    for name in ("a", "b"):
        api.fit("digits", cache=digits_cache, out=tmp_path / name, device=device, values=VALUES)
    assert os.environ[backends.WORKSPACE] == ":4096:8"
    assert equal(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        *(pytest.param("cuda", p, marks=pytest.mark.gpu) for p in ("fp32", "bf16", "fp16")),
    ],
)
def test_a_deterministic_run_that_stops_after_every_step_is_resumed_exactly(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str
) -> None:
    """With dropout, moving average and, in fp16, the scaler of the loss."""
    values = {**VALUES, "epochs": 2, "precision": precision, "student": "test_vit", "drop": 0.1}

    def fit(name: str) -> None:
        api.fit("digits", cache=digits_cache, out=tmp_path / name, device=device, values=values)

    fit("whole")
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    stops = 0
    while not (tmp_path / "stopped/result.json").exists():
        try:
            fit("stopped")
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    runs = tmp_path / "whole", tmp_path / "stopped"
    assert equal(*runs)
    assert equal(*runs, network="model-ema")
