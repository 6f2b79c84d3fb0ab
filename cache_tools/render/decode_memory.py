"""Memory of the large pictures that are decoded at once, limited for all threads of a process."""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

from cache_tools.runtime import host_memory

log = logging.getLogger("kdcache")
MAX_MEMORY = 960 * 10**6
"""Most bytes of memory that decoding an image takes by its header.

A JPEG of one scan takes 3 bytes a pixel, one of several scans up to 9, for others see `pillow`.
"""
LARGE = 2**26
"""Bytes of memory from which on a picture counts: see `large_memory` for all of these at once."""
_PATIENCE = 5.0
"""Seconds that a thread waits for the memory of another before it is logged."""
_FIRST = threading.Lock()


class Memory:
    """Memory that is taken by many threads, each of which waits until its share is free."""

    def __init__(self, count: int) -> None:
        self._count = self._left = count
        self._freed, self._logged = threading.Condition(), False

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Take `count` bytes, no more than there are at all, until the block ends."""
        with self._freed:
            if not self._freed.wait_for(lambda: count <= self._left, _PATIENCE):
                if not self._logged:
                    log.info(
                        "large pictures wait for each other: all of them take %.1f GB at most, a "
                        "quarter of this process's memory (0.96 GB at least). Smaller ones do not: "
                        "kdcache shard SRC DST --short-side PIXELS",
                        self._count / 1e9,
                    )
                self._logged = True
                self._freed.wait_for(lambda: count <= self._left)
            self._left -= count
        try:
            yield
        finally:
            with self._freed:
                self._left += count
                self._freed.notify_all()


def large_memory() -> Memory:
    """Memory of all large pictures at once: a quarter of the process's, MAX_MEMORY at least."""
    with _FIRST:
        return _large_memory()


@cache
def _large_memory() -> Memory:
    return Memory(max(MAX_MEMORY, host_memory.share() // 4))


def charged(memory: int) -> AbstractContextManager[None]:
    """Take memory from that of all large pictures, for one of them."""
    return large_memory().taken(memory) if memory > LARGE else nullcontext()
