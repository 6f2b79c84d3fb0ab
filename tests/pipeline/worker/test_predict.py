"""Inference of windows on a GPU: copies, events, and memory that does not suffice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_tools.errors import TeacherError
from cache_tools.store.cache import Cache
from cache_tools.targets import codec
from pipeline import recipe as recipes
from pipeline.run import run
from pipeline.teacher import page_locked
from pipeline.teacher.forward import Forward
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.meter import Meter
from pipeline.worker.predict import Prediction, Predictor
from pipeline.worker.window import PinnedBuffer, Window
from tests.helpers.fake_gpu import CUDA, FakeGpu

Teacher = Callable[[torch.Tensor], None]


def predict(
    cache: Path, device: torch.device, batch_size: int, teacher: Teacher = lambda _: None
) -> list[Prediction]:
    """Predict the first window of a cache, whose pixels are zeros."""
    store, pinned = Cache.open(cache), PinnedBuffer(device.type == "cuda")
    rows = store.spec.rows(0)
    pixels = pinned.array((1, len(rows), 32, 32, 3))
    pixels[:] = 0
    window = Window(DecodeGroup(0, (0,)), rows, pixels, True, pinned)

    def forward(x: torch.Tensor, other: Any, mix: Any, label: Any) -> tuple[torch.Tensor, ...]:
        teacher(x)
        return x.new_zeros((len(x), 3)), x.new_ones((len(x), 3))

    on_device: Any = type("Fake", (), {"device": device, "__call__": staticmethod(forward)})()
    found = [*Predictor(store, on_device, batch_size, Meter(1)).predict(window, 0)]
    assert [row for one in found for row in one.rows] == [*rows]
    for one in found:
        assert [len(field) for field in one.sparse] == [len(one.rows)] * 2
    return found


def test_the_host_never_waits_for_a_copy_and_waiting_threads_sleep(
    gpu: FakeGpu, digits_cache: Path
) -> None:
    """Indices of partners are copied from page-locked memory, events that are awaited block."""
    found = predict(digits_cache, CUDA, 16)
    assert len(gpu.copies) == 1 + len(found)  # the pixels, and indices of every batch
    assert all(copy.pinned and copy.non_blocking for copy in gpu.copies)
    assert gpu.copies[0].stream is not gpu.compute
    [uploaded] = gpu.compute.waited
    assert found[-1].gpu is not None
    awaited: list[Any] = [uploaded, found[-1].gpu.end, *(one.copied for one in found)]
    assert all(event.options.get("blocking") for event in awaited)


def test_without_lockable_memory_everything_is_copied_all_the_same(
    gpu: FakeGpu, digits_cache: Path
) -> None:
    gpu.lockable = False
    predict(digits_cache, CUDA, 16)
    assert not any(copy.pinned for copy in gpu.copies)
    tensor = torch.arange(4)
    assert (page_locked.upload(tensor, CUDA) == tensor).all()
    assert page_locked.upload(tensor, torch.device("cpu")) is tensor


@pytest.mark.parametrize(
    "reason",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "[enforce fail at alloc_cpu.cpp:113] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)",
    ],
)
def test_failed_allocations_of_libraries_halve_the_batch(digits_cache: Path, reason: str) -> None:
    sizes: list[int] = []

    def room_for(views: int) -> Teacher:
        def teacher(x: torch.Tensor) -> None:
            sizes.append(len(x))
            if len(x) > views:
                raise RuntimeError(reason)

        return teacher

    predict(digits_cache, torch.device("cpu"), 32, room_for(8))
    assert sizes[:4] == [32, 16, 8, 8]
    with pytest.raises(TeacherError, match="does not fit into the memory of cpu"):
        predict(digits_cache, torch.device("cpu"), 32, room_for(0))


def test_other_errors_of_the_teacher_are_raised(digits_cache: Path) -> None:
    def teacher(_: torch.Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        predict(digits_cache, torch.device("cpu"), 32, teacher)


@pytest.mark.gpu
def test_a_gpu_without_room_for_the_batch_halves_it(digits_cache: Path) -> None:
    def teacher(x: torch.Tensor) -> None:
        if len(x) > 8:
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device=x.device)

    assert {len(one.rows) for one in predict(digits_cache, CUDA, 32, teacher)} <= {8, 2, 4}


@pytest.mark.gpu
def test_windows_rendered_while_a_gpu_is_behind_are_those_it_predicts(
    digits: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen windows in two page-locked buffers; each upload is queued behind other work."""
    small = recipes.load("digits", ["num_views=8", "views.mixup=0.5", "views_per_decode=1"])
    expected = run(small, str(digits), str(teacher), tmp_path / "cpu.zarr", "cpu")
    forward = Forward.__call__

    def behind(self: Forward, *arguments: Any) -> tuple[torch.Tensor, ...]:
        weights = torch.randn(4096, 4096, device=self.device)
        for _ in range(20):
            weights = weights @ weights.softmax(1)
        return forward(self, *arguments)

    monkeypatch.setattr(Forward, "__call__", behind)
    found = run(small, str(digits), str(teacher), tmp_path / "cuda.zarr", "cuda")
    for view in range(8):
        both = [codec.decode(one.read_view(view), one.spec.targets) for one in (found, expected)]
        assert np.allclose(both[0].probability_BK[:, 0], both[1].probability_BK[:, 0], atol=0.05)


@pytest.mark.gpu
def test_a_gpu_makes_the_targets_of_the_cpu(
    digits: Path, teacher: Path, digits_cache: Path, tmp_path: Path
) -> None:
    small = recipes.load("digits", ["num_views=4", "views.mixup=0.5"])
    store = run(small, str(digits), str(teacher), tmp_path / "c.zarr", "cuda")
    same = Cache.open(digits_cache)
    for view in range(4):
        both = [codec.decode(one.read_view(view), one.spec.targets) for one in (store, same)]
        assert np.allclose(both[0].probability_BK[:, 0], both[1].probability_BK[:, 0], atol=0.05)
