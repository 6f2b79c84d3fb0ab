"""Checkpoints: read to the host, whatever the device of the training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from cache_tools.errors import CacheDamaged
from cache_tools.storage import seal
from tests.helpers.fake_gpu import CUDA
from train.trainer import checkpoint
from train.trainer.checkpoint import Progress

CPU = torch.device("cpu")


def trained(device: torch.device, opt: str, steps: int = 0) -> tuple[Any, Any, Any]:
    """Task, optimizer and scaler of a network after some steps."""
    network = nn.Linear(4, 3).to(device)
    optimizer = create_optimizer_v2(network, opt=opt, lr=0.1)
    for _ in range(steps):
        network(torch.ones(2, 4, device=device)).sum().backward()
        optimizer.step()
    task = SimpleNamespace(
        device=device, trainable_module=network, get_trainable_module=lambda ema: None
    )
    return task, optimizer, torch.amp.GradScaler(device.type, enabled=False)


def devices(optimizer: torch.optim.Optimizer) -> list[tuple[str, str]]:
    values = [item for state in optimizer.state.values() for item in state.items()]
    return sorted((k, v.device.type) for k, v in values if isinstance(v, torch.Tensor))


def test_a_checkpoint_is_read_to_the_host_and_copied_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, *trained(CPU, "lamb", 2), Progress(epoch=3))
    places, load = [], torch.load

    def spy(*arguments: Any, map_location: Any, **options: Any) -> Any:
        places.append(torch.device(map_location).type)
        return load(*arguments, map_location="cpu", **options)

    monkeypatch.setattr(torch, "load", spy)
    task, optimizer, scaler = trained(CPU, "lamb")
    task.device = CUDA
    found = checkpoint.load(tmp_path, task, optimizer, scaler)
    assert found is not None
    assert found.epoch == 3
    assert places == ["cpu"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"x": torch.zeros(1)}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("place", {"colour": 1}),
        *((key, None) for key in ("model", "optimizer", "scaler", "generators", "place")),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    checkpoint.save(tmp_path, *trained(CPU, "lamb", 2), Progress(epoch=3))
    state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    changed = {name: of for name, of in state.items() if name != key}
    torch.save(changed if value is None else {**changed, key: value}, tmp_path / checkpoint.NAME)
    (tmp_path / seal.NAME).unlink()
    with pytest.raises(CacheDamaged, match=r"is not of this run .* --fresh"):
        checkpoint.load(tmp_path, *trained(CPU, "lamb"))


@pytest.mark.gpu
@pytest.mark.parametrize("opt", ["lamb", "adamw", "momentum"])
def test_states_are_on_the_devices_where_they_were(tmp_path: Path, opt: str) -> None:
    """Counters of steps on the host: on a GPU each update would wait for them."""
    before = trained(CUDA, opt, 2)
    checkpoint.save(tmp_path, *before, Progress())
    after = trained(CUDA, opt)
    checkpoint.load(tmp_path, *after)
    assert devices(after[1]) == devices(before[1])
