"""A window of views on its way from the renderer to the teacher, and the memory it lies in.

Shapes: W rows of a window, G views of a group, S pixels a side.
"""

import logging
import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.worker.groups import Group

log = logging.getLogger("kdcache")
U1 = NDArray[np.uint8]


class Slab:
    """Memory for a window in all views of a group."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.uploaded: torch.cuda.Event | None = None
        """When the device has read what lies here; None: nobody does behind our back."""

    def room(self, shape: tuple[int, ...]) -> U1:
        """Memory of this shape, once the device has read what lay there."""
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

    group: Group
    """Whose they are."""
    rows: range
    """Which rows of the sample table."""
    pixels: U1
    """[G, W, S, S, 3], complete when `ready` is set and there is no error."""
    last: bool
    """Whether the group ends here."""
    slab: Slab | None = None
    """What the pixels lie in."""
    probes: dict[tuple[int, int], int] = field(default_factory=dict)
    """View and row → fingerprint, of the rows that are probed."""
    error: Exception | None = None
    """Why it could not be rendered."""
    ready: threading.Event = field(default_factory=threading.Event)
    """Set when all its images are rendered, or given up."""
