"""A window of views between renderer and teacher, and its page-locked memory.

Shapes: W rows of a window, G views of a group, S pixels a side.
"""

import logging
import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from cache_tools.numerics.array_types import U1
from pipeline.worker.groups import DecodeGroup

log = logging.getLogger("kdcache")


class PinnedBuffer:
    """Reusable memory for a window in all views of a group, page-locked where possible."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.uploaded: torch.cuda.Event | None = None
        """End of the device's read of the last contents; None: nothing to wait for."""

    def array(self, shape: tuple[int, ...]) -> U1:
        """Memory of this shape, after the device's read of the last contents."""
        if self.uploaded is not None:
            self.uploaded.synchronize()
            self.uploaded = None
        count = int(np.prod(shape))
        if len(self._memory) < count:
            self._memory = self._new(count)
        return self._memory.numpy()[:count].reshape(shape)

    def _new(self, count: int) -> torch.Tensor:
        if self._pinned:
            try:
                return torch.empty(count, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                log.info("%d MB are not page-locked (%s): copies wait", count >> 20, reason)
                self._pinned = False
        return torch.empty(count, dtype=torch.uint8)


@dataclass
class Window:
    """Rows of a block in the views of a group, rendered or on the way."""

    group: DecodeGroup
    """Decode group of the views."""
    rows: range
    """Rows of the sample table."""
    pixels: U1
    """[G, W, S, S, 3], complete when `ready` is set and there is no error."""
    last: bool
    """True for the last window of the group."""
    buffer: PinnedBuffer | None = None
    """Memory of the pixels."""
    probes: dict[tuple[int, int], int] = field(default_factory=dict)
    """View and row → fingerprint, of the rows that are probed."""
    error: Exception | None = None
    """Reason why rendering failed."""
    ready: threading.Event = field(default_factory=threading.Event)
    """Set when all images are rendered or abandoned."""
