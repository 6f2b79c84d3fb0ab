"""Upload of batches, for students and a teacher in the loop."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_tools.data.images import ImageDataset
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from pipeline.teacher.forward import Forward
from pipeline.teacher.online import online
from tests.helpers.fake_gpu import CUDA, FakeGpu
from train.data import device_batch
from train.data.buffer_pool import BufferPool
from train.data.device_batch import DeviceBatch, online_targets, to_device
from train.data.loader import Batch, Loader
from train.data.native_renderer import NativeRenderer
from train.data.schedule import Schedule
from train.data.stored_targets import StoredTargets


@pytest.fixture(autouse=True)
def no_copies_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    device_batch._read_by_gpu.clear()
    device_batch._copy_stream.cache_clear()


def batches(cache: Path, images: ImageDataset, pin_memory: bool) -> list[Batch]:
    store = Cache.open(cache)
    targets = StoredTargets(CacheEnsemble((store,), (1.0,)))
    schedule = Schedule(store, 1, 20, 0)
    loader = Loader(schedule, targets, NativeRenderer(store, images, 1), pin_memory=pin_memory)
    return [*loader.epoch(0)]


def test_every_copy_of_a_pooled_array_keeps_it_until_the_copy_has_passed(
    gpu: FakeGpu, digits_cache: Path, images: ImageDataset
) -> None:
    """A teacher in the loop, too, which gets what is on the device already."""
    batch, *_ = batches(digits_cache, images, pin_memory=True)
    spec, asked = Cache.open(digits_cache).spec, []
    begin = torch.from_numpy(batch.pictures).data_ptr()
    pooled = range(begin, begin + batch.pictures.nbytes)

    def teacher(pixels: Any, partner: Any, mix: Any, labels: Any) -> Any:
        for picture in (pixels, partner):
            assert isinstance(picture, torch.Tensor)
            assert picture.data_ptr() not in pooled
        assert (pixels.numpy() == batch.pixels).all()
        assert (partner.numpy() == batch.partner).all()
        asked.append(labels)
        count = len(pixels)
        fields = torch.zeros(count, 2, dtype=torch.long), torch.ones(count, 2)
        return *fields, torch.zeros(count, 1), torch.zeros(count, 0), torch.zeros(count, 0)

    moved = DeviceBatch.of(batch, CUDA, partial(online_targets, teacher, spec=spec))
    assert len(asked) == 1
    assert moved.online is not None
    copies = [copy for copy in gpu.copies if copy.address in pooled]
    kept = [array for _, array in device_batch._read_by_gpu if array.ctypes.data in pooled]
    assert len(copies) == len(kept) == 1
    gpu.busy = False
    to_device(np.zeros(1, "f4"), CUDA)
    assert not device_batch._read_by_gpu


def test_copies_of_two_threads_keep_their_arrays_until_each_has_passed(gpu: FakeGpu) -> None:
    arrays = [np.full(3, i) for i in range(3)]
    to_device(arrays[0], CUDA)
    [(first, _)] = device_batch._read_by_gpu
    other = threading.Thread(target=to_device, args=(arrays[2], CUDA))

    def passed() -> bool:
        if other.ident is None:  # the other thread comes while this one looks
            other.start()
            other.join(1)
        return True

    first.query = passed  # type: ignore[method-assign]
    to_device(arrays[1], CUDA)
    other.join()
    assert [int(array[0]) for _, array in device_batch._read_by_gpu] == [1, 2]


def test_copies_have_a_stream_of_their_own_for_which_the_computation_waits(gpu: FakeGpu) -> None:
    pool = BufferPool((2, 4, 4, 3), pin_memory=True)
    for array in (pool.take(), np.arange(3)):
        assert (to_device(array, CUDA).numpy() == array).all()
    first, second = gpu.copies
    assert first.pinned and second.pinned
    assert first.non_blocking and second.non_blocking
    assert first.stream is second.stream is not gpu.compute
    assert [event.stream for event in gpu.compute.waited] == [first.stream, second.stream]
    assert gpu.uses == [gpu.compute, gpu.compute]


def test_uploads_go_on_where_memory_cannot_be_locked(gpu: FakeGpu) -> None:
    gpu.lockable = False
    array = np.arange(5)
    assert (to_device(array, CUDA).numpy() == array).all()
    assert not gpu.copies[0].pinned


@pytest.mark.gpu
def test_uploads_to_a_gpu_have_the_pixels_though_the_pool_reuses_its_arrays() -> None:
    pool, device = BufferPool((64, 128, 128, 3), pin_memory=True), torch.device("cuda")
    weights, there = torch.randn(4096, 4096, device=device), []
    for value in range(24):
        weights = weights @ weights.softmax(1)  # the GPU is behind
        array = pool.take()
        array[:] = value
        there.append(to_device(array, device))
        del array
    assert [int(t.min()) for t in there] == [int(t.max()) for t in there] == [*range(24)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_epochs_of_batches_have_the_hosts_pixels_and_targets_while_the_device_is_behind(
    digits_cache: Path, images: ImageDataset, device: str
) -> None:
    """Arrays of the pool are reused by batches that are rendered meanwhile."""
    store, there = Cache.open(digits_cache), torch.device(device)
    weights = torch.randn(*2 * [4096 if device == "cuda" else 8], device=there)

    def epochs(device: torch.device, pin_memory: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal weights
        schedule = Schedule(store, 1, 5, 0)
        targets = StoredTargets(CacheEnsemble((store,), (1.0,)))
        loader = Loader(schedule, targets, NativeRenderer(store, images, 4), pin_memory=pin_memory)
        found = []
        for epoch in range(4):
            for batch in loader.epoch(epoch):
                weights = weights @ weights.softmax(1)
                moved = DeviceBatch.of(batch, device)
                found.append((moved.pixels, moved.targets.probability))
        return [(pixels.cpu(), probability.cpu()) for pixels, probability in found]

    expected = epochs(torch.device("cpu"), pin_memory=False)
    found = epochs(there, pin_memory=device == "cuda")
    assert len(found) == len(expected) == 80
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-3)
        assert torch.equal(one[1], other[1])


@pytest.mark.gpu
def test_a_teacher_in_the_loop_has_the_same_targets_on_a_gpu(
    digits_cache: Path, teacher: Path, images: ImageDataset
) -> None:
    store, device = Cache.open(digits_cache), torch.device("cuda")
    ask = {d: online(store, str(teacher), torch.device(d)) for d in ("cpu", "cuda")}
    assert isinstance(ask["cuda"], Forward)
    for batch in batches(digits_cache, images, pin_memory=True):
        expected = online_targets(ask["cpu"], batch, store.spec)
        on_gpu = partial(online_targets, ask["cuda"], spec=store.spec)
        moved = DeviceBatch.of(batch, device, on_gpu)
        assert moved.online is not None
        p = moved.online.probability.cpu()
        assert torch.allclose(p, expected.probability_BK, atol=1e-2)
