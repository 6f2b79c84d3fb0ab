"""Reading parts of many files from many threads: some stay open, never more than the system allows.

A data set may have more shards than a process may have open files (1,024 as a rule). The first ones
that are read stay open; the others are opened for each read, which costs some microseconds.
"""

import contextlib
import os
import resource
import threading
from pathlib import Path

_LEFT_TO_OTHERS = 0.5


class FilePool:
    """Open files of one data set."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = int(soft * _LEFT_TO_OTHERS) if soft != resource.RLIM_INFINITY else 2**16
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: Path) -> int:
        """Return the descriptor of a file that stays open, or -1 if it cannot."""
        if (found := self._open.get(path)) is not None:
            return found
        with contextlib.suppress(OSError):
            self.read(path, 0, 0)
        return self._open.get(path, -1)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; OSError when the file cannot be read."""
        descriptor = self._open.get(path)
        if descriptor is not None:
            return os.pread(descriptor, length, offset)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            with self._lock:
                if keep := path not in self._open and len(self._open) < self._most:
                    self._open[path] = descriptor
            if not keep:
                os.close(descriptor)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
