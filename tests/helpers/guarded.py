"""Memory beside which nothing can be read or written."""

import ctypes
import mmap

import numpy as np


def guarded(size: int, at_end: bool) -> np.ndarray:
    """Bytes that begin or end at a page which cannot be touched, as can none before and behind."""
    page, protect = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True).mprotect
    pages = -(-size // page)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), np.uint8)
    for number in (0, pages + 1):
        place = ctypes.c_void_p(memory.ctypes.data + number * page)
        assert protect(place, ctypes.c_size_t(page), 0) == 0
    return memory[(pages + 1) * page - size if at_end else page :][:size]
