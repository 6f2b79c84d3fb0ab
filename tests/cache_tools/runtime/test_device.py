"""The device of both stages, tried before there is work to lose."""

from typing import Any

import pytest
import torch

from cache_tools.errors import UsageError
from cache_tools.runtime import device


@pytest.mark.parametrize("name", ["gpu", "CPU", "meta", "cuda:99", "vulkan", "cpu:x"])
def test_a_device_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"the device {name} cannot be used"):
        device.select(torch, name)


def test_without_a_name_there_is_always_a_device() -> None:
    assert device.select(torch, None).type in ("cpu", "cuda")
    assert device.select(torch, "cpu", local=3) == torch.device("cpu")


class FakeTorch:
    """As torch on a machine where this process can use two of the GPUs, or one."""

    def __init__(self, gpus: int) -> None:
        self.cuda = self
        self.device_count, self.is_available = lambda: gpus, lambda: True
        self.device = str

    def zeros(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(1)


@pytest.mark.parametrize(("gpus", "local", "expected"), [(2, 3, "cuda:1"), (1, 3, "cuda:0")])
def test_processes_of_a_machine_divide_the_visible_gpus(
    gpus: int, local: int, expected: str
) -> None:
    """Also of Slurm's --gpus-per-task=1, where each process has a cuda:0 of its own."""
    assert device.select(FakeTorch(gpus), None, local) == expected
    assert device.select(FakeTorch(gpus), "cuda", local) == expected
