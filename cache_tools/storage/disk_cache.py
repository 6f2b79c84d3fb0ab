"""The local folder for what came over a network, or took long to find out: shards, parts, indices.

It is `--data-cache DIR`, else KDCACHE_CACHE, else `~/.cache/kdcache`. Files in it are named by a
digest of what they are of (URL, size, version), so a changed shard is another file. Nothing in it
is needed: what is gone is fetched again. Shards that no run has used for longest make room for
others when KDCACHE_CACHE_LIMIT (such as 200GB; default: 80 % of what the disk can give) is reached.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.storage import atomic

log = logging.getLogger("kdcache")
FOLDER, LIMIT = "KDCACHE_CACHE", "KDCACHE_CACHE_LIMIT"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARE = 0.8
_DOWN_TO = 0.9
"""Share of the limit that is left when something is dropped, so that this is seldom done."""


def key(*words: object) -> str:
    """The name in the folder of what `words` describe."""
    return hashlib.sha256("\n".join(map(str, words)).encode("utf-8", "surrogateescape")).hexdigest()


class DiskCache:
    """Shards and indices kept on this machine."""

    _told = False

    def __init__(self) -> None:
        """The folder that the environment names; it is made when something is kept."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.path = Path(os.environ.get(FOLDER) or f"{home}/kdcache").expanduser()
        self.caches = self.path / "caches"
        """Where parts of caches at URLs are kept (`kept`)."""
        self._used, self._full = -1, False

    def index(self, name: str) -> bytes | None:
        """A kept index, or None."""
        try:
            path = self._index(name)
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def keep_index(self, name: str, data: bytes) -> None:
        """Keep an index; a folder that cannot be written is no reason to stop.

        It has a checksum and can be made again, so no power failure is waited for (fsync).
        """
        path = self._index(name)
        partial = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}{atomic.PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            if not self._told:
                log.warning("the index is not kept in %s: %s", self.path, error.strerror)
            DiskCache._told = True
            partial.unlink(missing_ok=True)

    def shard(self, name: str, size: int) -> Path | None:
        """The path of a kept shard, or None."""
        path = self._shard(name)
        try:
            if path.stat().st_size != size:
                return None
            os.utime(path)
        except OSError:
            return None
        return path

    def invalidate(self, name: str) -> None:
        """Drop a shard that turned out wrong."""
        self._shard(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str, temporary: bool = False) -> Iterator[Path]:
        """A path to download a shard to; when the body ends well it is kept, or removed again.

        Other processes that want the same shard wait: one download serves them all.
        """
        folder = self._shard(name).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise KdcacheError(
                f"cannot write to the data folder {self.path}: {error.strerror}. Pass --data-cache "
                "with a folder that can be written."
            ) from None
        partial = folder / f"{name}.{os.getpid()}{atomic.PARTIAL}"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
            if not temporary and partial.exists():
                partial.replace(self._shard(name))
        except OSError as error:
            if isinstance(error, KdcacheError):
                raise
            raise atomic.cannot_write(partial, error) from None
        finally:
            partial.unlink(missing_ok=True)
            (folder / f"{name}.lock").unlink(missing_ok=True)
            os.close(lock)

    def evict(self, wanted: dict[str, int]) -> set[str]:
        """Which shards may be kept, after others were dropped to make room for them.

        Args:
            wanted: Bytes of each shard of a data set, in its order.

        Returns:
            Those that fit: the first ones. Which they are does not depend on what is read when, so
            that a data set larger than the limit does not push itself out over and over.
        """
        if self._shard("x").parent.is_dir():
            atomic.sweep(self._shard("x").parent)
        others = [p for p in self._kept() if p.name not in wanted] + self._of_caches()
        used = _size([*self._kept(), *self._of_caches()])
        limit, fit = self._limit(used), set[str]()
        total = 0
        for name, size in wanted.items():
            total += size
            if total <= limit:
                fit.add(name)
        inside = sum(size for name, size in wanted.items() if name in fit)
        excess = inside + _size(others) - limit
        for path in sorted(others, key=_used_at):
            if excess <= 0:
                break
            excess -= _size([path])
            path.unlink(missing_ok=True)
        return fit

    def reserve(self, size: int, ours: Path) -> bool:
        """Whether so many bytes more may be kept, after room was made for them.

        What lies in `ours` stays: a cache larger than the limit does not push itself out over and
        over, since epochs come back to its first parts.
        """
        if self._used < 0:
            self._used = _size([*self._kept(), *self._of_caches()])
        limit = self._limit(self._used)
        if self._used + size > limit and not self._full:
            self._drop(self._used + size - int(limit * _DOWN_TO), ours)
            self._used = _size([*self._kept(), *self._of_caches()])
        if self._used + size > limit:
            self._full = True  # looking for more to drop each time would take longer than reading
            return False
        self._used += size
        return True

    def _drop(self, count: int, ours: Path) -> None:
        """Remove about `count` bytes of what was not used for longest, and is not in `ours`."""
        others = [p for p in [*self._kept(), *self._of_caches()] if not p.is_relative_to(ours)]
        for path in sorted(others, key=_used_at):
            if count <= 0:
                return
            count -= _size([path])
            path.unlink(missing_ok=True)

    def _of_caches(self) -> list[Path]:
        return [p for p in self.caches.rglob("*") if p.is_file() and ".locks" not in p.parts]

    def _limit(self, used: int) -> int:
        if text := os.environ.get(LIMIT):
            return parse_size(text)
        folder = next(p for p in (self.path, *self.path.parents) if p.is_dir())
        return int((shutil.disk_usage(folder).free + used) * _SHARE)

    def _kept(self) -> list[Path]:
        folder = self._shard("x").parent
        return [p for p in folder.glob("*") if re.fullmatch(r"[0-9a-f]{64}", p.name)]

    def _index(self, name: str) -> Path:
        return self.path / "index" / name[:2] / name

    def _shard(self, name: str) -> Path:
        return self.path / "shards" / name


def _size(paths: Iterable[Path]) -> int:
    """Bytes of files; other processes may have removed some."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def parse_size(text: str) -> int:
    """Bytes of a size such as 200GB, 1.5T or 0; UsageError when it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise UsageError(f"{LIMIT}={text} is no size. Write it as 200GB or 1.5TB.")
    return int(float(found[1]) * _UNITS[found[2]])
