"""Shards behind a URL, with random access: an index of each, and reads that are checked.

Opening needs an index of every shard: from the local data folder, from beside the shard (`kdcache
shard` writes it there), or, once, by reading the shard through. A sample is then read from the
shard's local copy when there is one, else by a range request, while a few threads fetch the shards
that were touched. Every image, with its label, is compared with its CRC-32, wherever it came from:
a local copy that fails is dropped, a reply that fails is requested again, and a shard that changed
is an error.
"""

import logging
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache_tools.data import info_json, tar_index
from cache_tools.data.file_pool import FilePool
from cache_tools.data.readahead import ReadAhead
from cache_tools.data.tar_index import TarIndex
from cache_tools.errors import DataError
from cache_tools.runtime import progress
from cache_tools.storage import disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.fsspec_client import FsspecClient

log = logging.getLogger("kdcache")
_ASKERS, _ASKED, _FETCHERS = 16, 1024, 4
_MB = 10**6


@dataclass(frozen=True)
class Shard:
    """One shard behind a URL."""

    name: str
    """Its name below the URL."""
    size: int
    """Its bytes."""
    version: str
    """Its etag or date, as the server has it; "" when it has none."""
    key: str
    """Its name in the local data folder."""


class RemoteShards:
    """The shards of one data set."""

    def __init__(self, remote: FsspecClient, names: Sequence[str], pattern: str) -> None:
        """Shards `names` below a URL; UsageError when one is not there."""
        self._remote, self._folder = remote, DiskCache()
        stats: list[tuple[int, str] | None] = []
        with ThreadPoolExecutor(_ASKERS) as pool:
            for begin in range(0, len(names), _ASKED):
                stats += pool.map(remote.stat, names[begin : begin + _ASKED])
                known = zip(names, stats, strict=False)
                if absent := [name for name, stat in known if stat is None]:
                    raise info_json.missing(pattern, names[: len(stats)], absent)
        self.shards = [
            Shard(name, *stat, disk_cache.key(remote.url, name, *stat))
            for name, stat in zip(names, stats, strict=True)
            if stat is not None
        ]
        self._fit = self._folder.evict({s.key: s.size for s in self.shards})
        self._local: dict[int, Path] = {}
        self._file_pool = FilePool()
        self._ahead = ReadAhead(self._part)
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked: set[int] = set()
        self._lock = threading.Lock()
        self._fetchers: list[threading.Thread] = []

    def indices(self, beside: bool) -> list[TarIndex]:
        """Read or make the index of every shard; `beside`: each has one beside it.

        Raises:
            DataError, UsageError: A shard or index cannot be read.
        """
        with ThreadPoolExecutor(_ASKERS) as pool:
            known = list(pool.map(lambda s: self._known(s, beside), self.shards))
        lacking = [i for i, index in enumerate(known) if index is None]
        total = sum(self.shards[i].size for i in lacking)
        label = "read shards once for their index"
        with _megabytes(label, total) as done, ThreadPoolExecutor(_FETCHERS) as pool:
            made = pool.map(lambda i: self._scan(self.shards[i], done), lacking)
            found = dict(zip(lacking, made, strict=True))
        return [found[i] if index is None else index for i, index in enumerate(known)]

    def read(self, where: int, offset: int, length: int, crc: int) -> bytes:
        """Read the `length` bytes at `offset` of shard number `where`, which have this CRC-32.

        Raises:
            DataError: It cannot be read, or the shard is not the one that was opened.
        """
        shard = self.shards[where]
        data = self._read_local(where, offset, length)
        if data is not None:
            if len(data) == length and zlib.crc32(data) == crc:
                return data
            self._drop(where)
        ahead = shard.key not in self._fit  # what is being fetched whole is not read twice
        for attempt in range(3):
            if ahead and attempt == 0:
                data = self._ahead.read(where, offset, offset + length, shard.size)
            else:
                data = self._part(where, offset, offset + length)
            if zlib.crc32(data) == crc:
                return data
        self._check_unchanged(shard)
        raise DataError(
            f"{self._remote.url}/{shard.name}: the bytes at {offset:,} are not those of its index. "
            f"Remove the index ({shard.name}{tar_index.SUFFIX} there and "
            f"{self._folder.path} here), or write the shard again."
        )

    def _check_unchanged(self, shard: Shard) -> None:
        if self._remote.stat(shard.name) != (shard.size, shard.version):
            raise DataError(
                f"{self._remote.url}/{shard.name} has changed since this run opened it. Run the "
                "same command again: it checks whether the new shard matches."
            )

    def _part(self, where: int, begin: int, end: int) -> bytes:
        shard = self.shards[where]
        return self._remote.part(shard.name, begin, end, shard.size)

    def _known(self, shard: Shard, beside: bool) -> TarIndex | None:
        if (data := self._folder.index(shard.key)) is not None:
            try:
                index = tar_index.unpack(data, shard.name)
                if index is not None and index.tar_bytes == shard.size and index.crc_N is not None:
                    return index
            except DataError:
                pass
            log.warning("the kept index of %s is damaged or old; it is made again", shard.name)
        if not beside:
            return None
        name = shard.name + tar_index.SUFFIX
        if (data := self._remote.read(name, tar_index.largest(shard.size))) is None:
            return None
        if (index := tar_index.unpack(data, f"{self._remote.url}/{name}")) is None:
            return None
        if index.tar_bytes != shard.size or index.crc_N is None:
            log.warning("%s is of another shard than the one beside it; not used", name)
            return None
        self._folder.store_index(shard.key, data)
        return index

    def _scan(self, shard: Shard, done: Callable[[int], None]) -> TarIndex:
        """Read a shard through, keeping it if there is room.

        A kept copy without an index cannot be checked: it is fetched again.
        """
        with self._folder.writing(shard.key, temporary=shard.key not in self._fit) as partial:
            if (index := self._known(shard, beside=False)) is not None:  # of another process
                return index
            self._remote.download(shard.name, shard.size, partial, done)
            self._check_unchanged(shard)  # its pieces would be of two shards
            with partial.open("rb") as file:
                index = tar_index.scan(file, f"{self._remote.url}/{shard.name}", checksums=True)
            self._folder.store_index(shard.key, index.pack())
        return index

    def _read_local(self, where: int, offset: int, length: int) -> bytes | None:
        """Read the local copy, or None; requests a copy where there is none and may be one."""
        shard = self.shards[where]
        path = self._local.get(where)
        if path is None and shard.key in self._fit:
            path = self._folder.shard(shard.key, shard.size) if where not in self._asked else None
            if path is None:
                self._ask(where)
                return None
            self._local[where] = path
        try:
            return None if path is None else self._file_pool.read(path, offset, length)
        except OSError:  # the folder was emptied
            self._local.pop(where, None)
            return None

    def _drop(self, where: int) -> None:
        """Drop a damaged copy: this run reads its shard by ranges, the next one fetches it."""
        shard = self.shards[where]
        log.warning("the local copy of %s is damaged and was removed", shard.name)
        self._folder.invalidate(shard.key)
        with self._lock:
            self._asked.add(where)
            self._local.pop(where, None)

    def _ask(self, where: int) -> None:
        with self._lock:
            if where in self._asked:
                return
            self._asked.add(where)
            self._wanted.put(where)
            if len(self._fetchers) < _FETCHERS:  # daemons: the end of a run need not wait for them
                thread = threading.Thread(target=self._fetch, name="fetch", daemon=True)
                self._fetchers.append(thread)
                thread.start()

    def _fetch(self) -> None:
        while True:
            where = self._wanted.get()
            shard = self.shards[where]
            try:
                with self._folder.writing(shard.key) as partial:
                    if self._folder.shard(shard.key, shard.size) is None:
                        self._remote.download(shard.name, shard.size, partial, lambda _: None)
                if (path := self._folder.shard(shard.key, shard.size)) is not None:
                    self._local[where] = path
            except Exception as error:
                log.warning("%s is read by ranges, for it could not be kept: %s", shard.name, error)


@contextmanager
def _megabytes(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in MB, reported in bytes from many threads, if there is anything to do."""
    if not total:
        yield lambda _: None
        return
    lock, so_far = threading.Lock(), 0
    with progress.bar(label, -(-total // _MB), "MB") as advance:

        def done(count: int) -> None:
            nonlocal so_far
            with lock:
                before, so_far = so_far, so_far + count
                advance(so_far // _MB - before // _MB)

        yield done
