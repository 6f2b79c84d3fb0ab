"""A cache at a URL, read part by part as training wants it, each part once.

What was read is kept in the data folder (`data_folder`), as a folder of the same files: the next
epoch, the next run and other processes of this machine find it there. The manifest is asked for
every time, so that another cache in the place is noticed; all else follows from its fingerprint.
Nothing kept is believed: every read is checked like one over the network, and what turned out
wrong is fetched again. When the folder is full, what other runs left in it makes room; where that
is not enough, parts are read without being kept.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping

from cache_tools.errors import UsageError
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.backends import MANIFEST, MAX_FILE, Folder, ObjectStore
from cache_tools.storage.disk_cache import DiskCache

log = logging.getLogger("kdcache")
_LOCKS = 64


class CachedStorage:
    """Files of a cache at a URL, from the data folder where they are there."""

    tries = ObjectStore.tries

    def __init__(self, remote: ObjectStore, fingerprint: str) -> None:
        self._remote, self._data = remote, DiskCache()
        self.path = self._data.caches / disk_cache.key(remote.url, fingerprint)
        self._local = Folder(self.path)
        self._lock = threading.Lock()
        self._told = False

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """As `storage.Storage`."""
        if name == MANIFEST:
            return self._remote.read(name, limit)
        size = self._local.size(name)
        if size is not None and size <= limit:
            return self._kept(name)
        return self._fetch(name, lambda: self._remote.read(name, limit))

    def read_sized(self, name: str, size: int) -> bytes:
        """As `storage.Storage`."""
        if self._local.size(name) == size:
            return self._kept(name)
        return self._fetch(name, lambda: self._remote.read_sized(name, size))

    def size(self, name: str) -> int | None:
        """As `storage.Storage`."""
        found = self._local.size(name) if name != MANIFEST else None
        return self._remote.size(name) if found is None else found

    def invalidate(self, name: str) -> None:
        """As `storage.Storage`."""
        (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """As `storage.Storage`: never."""
        raise UsageError(f"{self} is read only: {name} is not written.")

    def initialize(self, contents: Mapping[str, bytes]) -> None:
        """As `storage.Storage`: never."""
        self.write(MANIFEST, contents[MANIFEST])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """As `storage.Storage`."""
        yield

    creation_lock = locked

    def __str__(self) -> str:
        return str(self._remote)

    def _kept(self, name: str) -> bytes:
        data = self._local.read(name)
        with contextlib.suppress(OSError):
            os.utime(self.path / name)  # what was used lately makes room last
        return data

    def _fetch(self, name: str, ask: Callable[[], bytes]) -> bytes:
        """Bytes from the URL, kept; processes that want the same file wait for one of them."""
        try:
            with self._file_lock(name):
                if self._local.size(name) is not None:
                    return self._kept(name)
                data = ask()
                with self._lock:
                    wanted = self._data.reserve(len(data), self.path)
                if wanted:
                    self._keep(name, data)
                else:
                    self._tell("the data folder is full")
                return data
        except _Unwritable as error:
            self._tell(str(error))
            return ask()

    @contextlib.contextmanager
    def _file_lock(self, name: str) -> Iterator[None]:
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS
        try:
            (self.path / ".locks").mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / f".locks/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise _Unwritable(f"{self.path} cannot be written ({error.strerror})") from None
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; it can be fetched again, so no disk is waited for."""
        path = self.path / name
        partial = path.with_name(
            f"{path.name}.{os.getpid()}-{threading.get_ident()}{atomic.PARTIAL}"
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _Unwritable(f"{path} cannot be written ({error.strerror})") from None

    def _tell(self, why: str) -> None:
        if not self._told:
            log.warning(
                "%s: parts of %s are read every time they are wanted. Pass --data-cache with a "
                "larger folder, or raise $%s",
                why,
                self,
                disk_cache.LIMIT,
            )
        self._told = True


class _Unwritable(Exception):
    """The data folder cannot be written."""
