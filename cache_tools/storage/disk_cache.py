"""The data folder: local copies of remote shards, parts of caches, and indices of shards.

It is `--data-cache DIR`, else KDCACHE_CACHE, else `~/.cache/kdcache`. Files in it are named by a
digest of their origin (URL, size, version), so a changed shard is another file. Every file in it
can be deleted; it is then fetched again. The least recently used files are evicted when
KDCACHE_CACHE_LIMIT (such as 200GB; default: 80 % of the free disk and the folder) is reached.
Tables and indices of the last seven days stay: shards come where these leave room.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.storage import atomic, paths

log = logging.getLogger("kdcache")
FOLDER, LIMIT = "KDCACHE_CACHE", "KDCACHE_CACHE_LIMIT"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TABLE = ".table"
_KEY = re.compile(rf"[0-9a-f]{{64}}({re.escape(_TABLE)})?")
_SEAL = 32
_SHARE = 0.8
_TRIES, _PAUSE = 300, 0.01
"""Times that a lock is taken anew, and seconds between them."""
_DOWN_TO = 0.9
"""Share of the limit that an eviction leaves, so that evictions are rare."""
_RECENT = 7 * 86_400
"""Seconds after its last use within which a table makes no room for shards."""


def key(*origin: object) -> str:
    """Return the file name for an origin, such as a URL, a size and a version."""
    return hashlib.sha256(
        "\n".join(map(str, origin)).encode("utf-8", "surrogateescape")
    ).hexdigest()


def table_key(*origin: object) -> str:
    """Return the file name for a table or index of an origin, which stays where shards come."""
    return key(*origin) + _TABLE


def file_key(path: Path) -> str:
    """Return the file name for a local file as it is: path, size, inode, both times of change.

    A file can be rewritten with its size and its date; the time of its inode is the system's own.
    """
    found = path.stat()
    times = found.st_mtime_ns, found.st_ctime_ns
    return key(path.resolve(), found.st_size, found.st_ino, *times)


class DiskCache:
    """Shards, indices and parts of caches, stored on this machine."""

    _warned = False

    def __init__(self) -> None:
        """Open the folder that the environment names; it is created by the first write."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        named = Path(paths.expand(os.environ.get(FOLDER) or f"{home}/kdcache"))
        if named.parts[:1] == ("~",):  # a container's user without an entry in /etc/passwd
            named = Path(tempfile.gettempdir()) / f"kdcache-{os.getuid()}"
        self.path = named
        self.caches = self.path / "caches"
        """Folder of parts of caches at URLs (`cached`)."""
        self._used, self._full = -1, False
        self._wanted: frozenset[str] = frozenset()

    def index(self, name: str) -> bytes | None:
        """Read a stored index, or return None; one of another name has bytes that do not decode."""
        try:
            data = self._index(name).read_bytes()
        except OSError:
            return None
        _mark_used(self._index(name))
        return data[:-_SEAL] if data[-_SEAL:] == _seal(name, data[:-_SEAL]) else data

    def store_index(self, name: str, data: bytes) -> None:
        """Store an index, which has a checksum; a folder that cannot be written is only logged."""
        try:
            if self._index(name).is_dir():
                atomic.remove(self._index(name))
            atomic.write_unsynced(self._index(name), data + _seal(name, data))
        except OSError as error:
            if not self._warned:
                log.warning("the index is not stored in %s: %s", self.path, error.strerror)
            DiskCache._warned = True

    def shard(self, name: str, size: int | None = None) -> Path | None:
        """Return the path of a stored shard, of `size` bytes where that is given, or None."""
        path = self._shard(name)
        try:
            if path.stat().st_size != size and size is not None:
                return None
        except OSError:
            return None
        _mark_used(path)
        return path

    def is_copy(self, path: Path) -> bool:
        """Check if a file is one of the stored shards."""
        return path.parent == self._shard("x").parent

    def invalidate(self, name: str) -> None:
        """Remove a damaged shard; one of another user may stay."""
        with contextlib.suppress(OSError):
            atomic.remove(self._shard(name))

    @contextlib.contextmanager
    def writing(self, name: str, temporary: bool = False) -> Iterator[Path]:
        """Yield a path to download a shard to; it is stored when the body succeeds.

        Other processes that need the same shard wait: one download serves them all. A `temporary`
        file is removed after the body in any case.
        """
        lock_file = self._shard(name).with_name(f"{name}.lock")
        lock = _lock(lock_file)
        try:
            with atomic.temporary(self._shard(name)) as partial:
                yield partial
                if not temporary and partial.exists() and partial.stat().st_size:
                    if self._shard(name).is_dir():
                        self.invalidate(name)
                    partial.replace(self._shard(name))
        except OSError as error:
            if isinstance(error, KdcacheError):
                raise
            raise atomic.cannot_write(self._shard(name), error) from None
        finally:
            with contextlib.suppress(OSError):  # another user's stays
                lock_file.unlink()
            os.close(lock)

    def sweep(self) -> None:
        """Remove temporary files and locks of killed processes, an hour old or older."""
        atomic.sweep(self.path)
        for lock in [*self.path.glob("*.lock"), *self._shard("x").parent.glob("*.lock")]:
            with contextlib.suppress(OSError):
                if _KEY.fullmatch(lock.stem) and atomic.is_abandoned(lock):
                    lock.unlink()

    def sweep_shards(self) -> None:
        """Do so among the shards alone, which takes one look at a folder."""
        atomic.sweep(self._shard("x").parent)

    def evict(self, wanted: dict[str, int]) -> set[str]:
        """Evict other files to make room for a data set's shards, in its order with their bytes.

        Returns:
            The shards that fit beside tables in use: the first ones, whatever is read when, so that
            a data set larger than the limit does not evict itself, or a table, over and over.
        """
        self.sweep()
        self._wanted = frozenset(wanted)
        shards, cache_files = self._shards(), self._cache_files()
        tables = {path for path in shards if _is_table_in_use(path)}
        others = [p for p in shards if p.name not in wanted and p not in tables] + cache_files
        limit = self._limit(_size([*shards, *cache_files])) - _size(tables)
        fit = set[str]()
        total = 0
        for name, size in wanted.items():
            total += size
            if total <= limit:
                fit.add(name)
        inside = sum(size for name, size in wanted.items() if name in fit)
        excess = inside + _size(others) - limit
        _remove_oldest(others, excess)
        return fit

    def reserve(self, size: int, ours: Path | None = None, down_to: float = _DOWN_TO) -> bool:
        """Reserve `size` bytes, evicting other files; False when they do not fit.

        Evictions leave `down_to` of the limit, these bytes included.

        The shards that `evict` made room for and files in `ours` stay: a cache larger than the
        limit does not evict itself over and over, since epochs come back to its first parts.
        """
        if self._used < 0:
            self._used = self._measure()
        limit = self._limit(self._used)
        if self._used + size > limit and not self._full:
            others = [path for path in self._shards() if path.name not in self._wanted]
            others = [path for path in others if not _is_table_in_use(path)]
            others += self._cache_files()
            if ours is not None:
                others = [path for path in others if not path.is_relative_to(ours)]
            _remove_oldest(others, self._used + size - int(limit * down_to))
            self._used = self._measure()
        if self._used + size > limit:
            self._full = True  # searching again each time would take longer than reading
            return False
        self._used += size
        return True

    def _measure(self) -> int:
        """Add up the bytes that are taken, by files in the making, too."""
        partials = self._shard("x").parent.glob(f"*{atomic.PARTIAL}")
        return _size([*self._shards(), *self._cache_files(), *partials])

    def _cache_files(self) -> list[Path]:
        return [p for p in self.caches.rglob("*") if p.is_file() and ".locks" not in p.parts]

    def _limit(self, used: int) -> int:
        if text := os.environ.get(LIMIT):
            return parse_size(text)
        folder = next(p for p in (self.path, *self.path.parents) if p.is_dir())
        return int((shutil.disk_usage(folder).free + used) * _SHARE)

    def _shards(self) -> list[Path]:
        folder = self._shard("x").parent
        return [p for p in folder.glob("*") if _KEY.fullmatch(p.name) and p.is_file()]

    def _index(self, name: str) -> Path:
        return self.path / "index" / name[:2] / name

    def _shard(self, name: str) -> Path:
        return self.path / "shards" / name


def _seal(name: str, data: bytes) -> bytes:
    """Digest of a stored index and of its name: one that was stored under another is none."""
    return hashlib.sha256(name.encode() + b"\n" + data).digest()


def _size(paths: Iterable[Path]) -> int:
    """Sum the bytes of files; other processes may have removed some."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _is_table_in_use(path: Path) -> bool:
    """Check if a file is a table that was used in the last days."""
    return path.suffix == _TABLE and time.time() - _used_at(path) < _RECENT


def _remove_oldest(paths: list[Path], excess: int) -> None:
    """Remove the least recently used files until `excess` bytes are freed."""
    for path in sorted(paths, key=_used_at):
        if excess <= 0:
            return
        size = _size([path])
        with contextlib.suppress(OSError):  # another user's, where these are kept apart
            path.unlink()
            excess -= size


def _lock(path: Path) -> int:
    """Open a lock file and wait for its lock; no lock where files have none.

    The last holder removes the file: a process that has waited for a removed one begins again,
    since others lock the new one. It does so some times only, as file systems on networks may
    describe an open file otherwise than its path.

    Raises:
        KdcacheError: It cannot be created.
    """
    lock = -1
    for _ in range(_TRIES):
        if lock >= 0:
            os.close(lock)
            time.sleep(_PAUSE)
        try:
            lock = atomic.open_lock(path)
        except KdcacheError as error:
            raise KdcacheError(
                f"{str(error).partition('. ')[0]}, in the data folder. Pass --data-cache with a "
                "folder that can be written."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return lock
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), path.lstat()):
                return lock
    log.warning("%s is not the file that was locked: other processes may do the same work", path)
    return lock


def _mark_used(path: Path) -> None:
    """Set the times of a file, by which it is evicted late; those of another user's stay."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def check_environment() -> None:
    """Raise UsageError unless the variables of the environment, if set, have values of their kind.

    A command checks them at its start: one that reads no URL would pass over them.
    """
    parse_size(os.environ.get(LIMIT) or "0")
    if (path := DiskCache().path).exists() and not path.is_dir():
        raise UsageError(
            f"{FOLDER}={os.environ.get(FOLDER, '')} is no folder: {path} is a file. Set it, or "
            "pass --data-cache, as in --data-cache ~/.cache/kdcache."
        )


def parse_size(text: str) -> int:
    """Parse a size such as 200GB, 1.5T or 0 into bytes; UsageError when it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise UsageError(f"{LIMIT}={text} is no size. Write it as 200GB or 1.5TB.")
    return int(float(found[1]) * _UNITS[found[2]])
