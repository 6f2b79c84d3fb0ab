"""Memory of batches: allocated a few times, reused, page-locked where a GPU copies from it.

New memory costs as much as the operations on a view: the kernel clears every page, and locking one
takes longer still. An array returns to the pool by itself when its last reference goes, so that a
batch which is still referred to is never overwritten.
"""

import functools
import logging
import math
import weakref

import torch

from cache_tools.numerics.array_types import U1

log = logging.getLogger("kdcache")


class BufferPool:
    """Reusable arrays of one shape."""

    def __init__(self, shape: tuple[int, ...], pin_memory: bool = False) -> None:
        """Pool arrays of `shape`; `pin_memory` locks their pages for copies to a GPU."""
        self._shape = shape
        self._pin_memory = pin_memory
        self._free: list[torch.Tensor] = []

    def take(self) -> U1:
        """Return an array with undefined content; may be called from any thread."""
        try:
            memory = self._free.pop()
        except IndexError:
            allocate = page_locked if self._pin_memory else torch.empty
            memory = allocate((math.prod(self._shape),), dtype=torch.uint8)
        # all views of `array`, those of torch among them, refer to it and not to `memory`
        array: U1 = memory.numpy()
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Allocate host memory, page-locked where possible; otherwise copies of it block the host."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        _log_once(str(error).partition("\n")[0])
        return torch.empty(shape, dtype=dtype)


@functools.cache
def _log_once(reason: str) -> None:
    log.info("memory is not page-locked (%s): copies wait", reason)
