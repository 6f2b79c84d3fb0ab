"""Reading parts of many files from many threads: some stay open, never more than the system allows.

A data set may have more shards than a process may have open files (often 1,024, which is raised as
far as the system lets it be). The first ones that are read stay open, half of what is allowed for
all data sets of the process together; the others are opened for each read, which costs some
microseconds.
"""

import contextlib
import logging
import os
import resource
import threading
import weakref
from functools import cache
from pathlib import Path
from typing import ClassVar

log = logging.getLogger("kdcache")
_LEFT_TO_OTHERS = 0.5
_ENOUGH = 2**16
"""Open files beyond which the limit is not raised."""


class FilePool:
    """Open files of one data set."""

    kept: ClassVar[int] = 0
    """Files that are open in all pools."""
    _lock: ClassVar = threading.RLock()  # a pool may be collected by whoever holds it

    def __init__(self) -> None:
        self._most = int(_limit() * _LEFT_TO_OTHERS)
        self._open: dict[Path, int] = {}
        # no __del__: at the interpreter's end that would run without the names of this module
        weakref.finalize(self, FilePool._close, self._open).atexit = False

    def __reduce__(self) -> tuple[type["FilePool"], tuple[()]]:
        """In another process descriptors are of other files."""
        return FilePool, ()

    def descriptor(self, path: Path) -> int:
        """Return the descriptor of a file that stays open, or -1 if it cannot."""
        if (found := self._open.get(path)) is not None:
            return found
        if FilePool.kept >= self._most:
            _log_full(self._most)
            return -1
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
                if keep := path not in self._open and FilePool.kept < self._most:
                    self._open[path] = descriptor
                    FilePool.kept += 1
            if not keep:
                os.close(descriptor)

    @classmethod
    def _close(cls, files: dict[Path, int]) -> None:
        """Close the files of a pool that is no more."""
        with cls._lock:
            cls.kept -= len(files)
        for descriptor in files.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _renew_lock() -> None:
    """Replace the lock in a child process: a thread that the child lacks may have held it."""
    FilePool._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _limit() -> int:
    """Raise the process's limit of open files as far as is allowed and of use, and return it."""
    soft, hard = (
        _ENOUGH if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    wanted = min(hard, _ENOUGH)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


@cache
def _log_full(count: int) -> None:
    log.info(
        "%d files of the data set stay open, half of what the system allows; others are opened for "
        "each picture. Raise the limit (ulimit -Hn), or write larger shards: kdcache shard",
        count,
    )
