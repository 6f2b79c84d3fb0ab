"""Announcement that a process makes a cache, for those that wait for its parts.

A cache that is a folder has a lock beside it, CACHE.making.lock, which every process that makes
parts shares as long as it lives: the kernel drops it with its holder, however that ends. Object
stores have no locks; there, parts alone show that a cache is made.
"""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cache_tools.errors import KdcacheError
from cache_tools.storage import atomic
from cache_tools.storage.folder import Folder
from cache_tools.store.cache import Cache

log = logging.getLogger("kdcache")
SUFFIX = ".making.lock"


@contextlib.contextmanager
def announced(store: Cache) -> Iterator[None]:
    """Announce in the body that this process makes the cache."""
    if not isinstance(store.storage, Folder):
        yield
        return
    try:
        lock = atomic.open_lock(_path(store))
    except KdcacheError as error:  # a folder of one's own in that of others
        log.info("%s Students that follow the cache do not notice when this process ends.", error)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def warn_of_others(store: Cache) -> None:
    """Log a warning where another process makes the same parts of the cache at present."""
    if is_made(store):
        log.warning(
            "%s makes this cache as well. Each makes what it finds missing, and of a part that is "
            "made twice one stays. Stop one of them, or share the parts: --task and --tasks.",
            last(store) or "another process",
        )


def is_made(store: Cache) -> bool | None:
    """Check if a process makes the cache at present; None where that cannot be seen."""
    if not isinstance(store.storage, Folder):
        return None
    try:
        lock = _open(store, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(lock)
    return False


def last(store: Cache) -> str:
    """Process and host that began last to make the cache, or ""."""
    try:
        lock = _open(store, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.pread(lock, 300, 0).decode(errors="replace").strip()
    finally:
        os.close(lock)


def _path(store: Cache) -> Path:
    path = Path(os.path.realpath(store.path))
    return path.with_name(path.name + SUFFIX)


def _open(store: Cache, mode: int) -> int:
    return os.open(_path(store), mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
