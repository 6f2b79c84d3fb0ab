"""Memory of batches: made a few times, used again, page-locked where a GPU copies from it.

New memory costs as much as the operations on a view: the kernel clears every page, and locking one
takes longer still. An array that is handed out comes back by itself when nobody refers to it any
more, so that a batch which somebody keeps is never overwritten.
"""

import math
import weakref

import numpy as np
import torch
from numpy.typing import NDArray

U1 = NDArray[np.uint8]


class Memory:
    """Arrays of one shape."""

    def __init__(self, shape: tuple[int, ...], locked: bool = False) -> None:
        """Arrays of `shape`; `locked` in memory, for copies that a GPU makes by itself."""
        self._shape = shape
        self._locked = locked
        self._free: list[torch.Tensor] = []

    def take(self) -> U1:
        """An array with anything in it, from any thread."""
        try:
            memory = self._free.pop()
        except IndexError:
            size = math.prod(self._shape)
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._locked)
        # all views of `array`, those of torch among them, refer to it and not to `memory`
        array: U1 = memory.numpy()
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(self._shape)
