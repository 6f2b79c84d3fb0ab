"""Memory of batches: page-locked where possible."""

import numpy as np
import pytest
import torch

from tests.helpers.fake_gpu import FakeGpu
from train.data import buffer_pool
from train.data.buffer_pool import BufferPool


def test_arrays_are_page_locked_and_reused(gpu: FakeGpu) -> None:
    pool = BufferPool((2, 4, 4, 3), pin_memory=True)
    array = pool.take()
    assert array.shape == (2, 4, 4, 3)
    assert torch.from_numpy(array).is_pinned()
    at = array.ctypes.data
    del array
    assert pool.take().ctypes.data == at
    assert len(gpu.pinned) == 1


def test_without_lockable_memory_arrays_are_plain_and_it_is_logged(
    gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.lockable = False
    buffer_pool._log_once.cache_clear()
    caplog.set_level("INFO", logger="kdcache")
    pool = BufferPool((2, 4, 4, 3), pin_memory=True)
    first, second = pool.take(), pool.take()
    first[:], second[:] = 1, 2
    assert not np.shares_memory(first, second)
    assert not torch.from_numpy(first).is_pinned()
    assert [r.message for r in caplog.records] == [
        "memory is not page-locked (CUDA error: out of locked memory): copies wait"
    ]


@pytest.mark.gpu
def test_arrays_are_page_locked_for_a_gpu() -> None:
    assert torch.from_numpy(BufferPool((2, 4, 4, 3), pin_memory=True).take()).is_pinned()
