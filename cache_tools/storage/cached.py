"""A cache at a URL, read part by part during training, each part once.

Files that were read are stored in the data folder (`disk_cache`), as a folder of the same files,
for the next epoch, the next run and other processes of this machine. The manifest is read from the
URL every time, so that a replaced cache is noticed; all else follows from its fingerprint. Every
local read is checked like one over the network, and a file that fails, of whatever size and kind,
is removed and fetched again. When the
folder is full, files of other runs are evicted; where that is not enough, parts are read without
being stored.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.base import MANIFEST, MAX_FILE
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.folder import Folder
from cache_tools.storage.object_store import ObjectStore

log = logging.getLogger("kdcache")
_LOCKS = 64


class CachedStorage:
    """Storage of a cache at a URL, with local copies in the data folder."""

    tries = ObjectStore.tries

    def __init__(self, remote: ObjectStore, fingerprint: str) -> None:
        self._remote, self._disk = remote, DiskCache()
        self.location = remote.location
        self._disk.sweep()
        self.path = self._disk.caches / disk_cache.key(remote.url, fingerprint)
        self._local = Folder(self.path)
        self._lock = threading.Lock()
        self._warned = False

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        if name == MANIFEST:
            return self._remote.read(name, limit)
        if (self._local_size(name) or 0) > limit:
            self.invalidate(name)
        if (data := self._read_local(name)) is not None:
            return data
        return self._fetch(name, lambda: self._remote.read(name, limit))

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        if self._local_size(name) not in (size, None):
            self.invalidate(name)
        if (data := self._read_local(name)) is not None:
            return data
        return self._fetch(name, lambda: self._remote.read_sized(name, size))

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        found = self._local_size(name) if name != MANIFEST else None
        return self._remote.size(name) if found is None else found

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        path = self.path / name
        with contextlib.suppress(OSError):
            for above in reversed([path, *path.parents][: 2 + name.count("/")]):
                if above.exists() and not above.is_dir():
                    above.unlink()  # a file where a folder should be
            atomic.remove(path)

    def write(self, name: str, data: bytes) -> None:
        """Refuse: the storage is read only."""
        raise UsageError(f"{self} is read only: {name} is not written.")

    def names(self) -> list[str] | None:  # noqa: D102 - Storage
        return self._remote.names()

    def remove(self, names: Iterable[str]) -> None:
        """Refuse: the storage is read only."""
        self.write(MANIFEST, b"")

    def initialize(self, contents: Mapping[str, bytes]) -> None:
        """Refuse: the storage is read only."""
        self.write(MANIFEST, contents[MANIFEST])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield

    creation_lock = locked

    def __str__(self) -> str:
        return str(self._remote)

    def _local_size(self, name: str) -> int | None:
        with contextlib.suppress(PermissionError):  # another user's
            return self._local.size(name)
        return None

    def _read_local(self, name: str) -> bytes | None:
        """Read a stored file, or remove it and return None where it cannot be read."""
        try:
            data = self._local.read(name)
        except FileNotFoundError:
            return None
        except OSError:  # CacheDamaged, too
            self.invalidate(name)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path / name)  # recently used files are evicted last
        return data

    def _fetch(self, name: str, read: Callable[[], bytes]) -> bytes:
        """Read from the URL and store; of several processes, one fetches and the others wait."""
        try:
            with self._file_lock(name):
                if (data := self._read_local(name)) is not None:
                    return data
                data = read()
                with self._lock:
                    reserved = self._disk.reserve(len(data), self.path)
                if not reserved:
                    self._warn("the data folder is full")
                    return data
                try:
                    atomic.write_unsynced(self.path / name, data)
                except OSError as error:
                    text = f"{self.path / name} cannot be written ({error.strerror})"
                    raise _Unwritable(text) from None
                return data
        except _Unwritable as error:
            self._warn(str(error))
            return read()

    @contextlib.contextmanager
    def _file_lock(self, name: str) -> Iterator[None]:
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS
        try:
            lock = atomic.open_lock(self.path / f".locks/{number}")
        except KdcacheError as error:
            raise _Unwritable(str(error).partition(". ")[0]) from None
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning(
                "%s: parts of %s are read over the network every time. Pass --data-cache with a "
                "larger folder, or raise $%s",
                reason,
                self,
                disk_cache.LIMIT,
            )
        self._warned = True


class _Unwritable(Exception):
    """Data folder that cannot be written."""
