"""Cache in an object store, or in another file system of fsspec."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from cache_tools.errors import DataError, UsageError
from cache_tools.storage import atomic, disk_cache, fsspec_client
from cache_tools.storage.base import MANIFEST, MAX_FILE, WAITING, too_large


class ObjectStore:
    """Folder of an object store or of another file system of fsspec, by its URL."""

    tries = 4

    def __init__(self, url: str) -> None:
        self._client = fsspec_client.FsspecClient(url)
        self.url, self.location = self._client.url, self._client.location

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        for _ in range(self.tries):
            if (found := self._client.stat(name)) is None:
                raise FileNotFoundError(f"{self.url}/{name}")
            if found[0] > limit:
                raise too_large(f"{self.url}/{name}", limit)
            data = self._client.sized(name, found[0])
            if data is not None:  # None: another writer has replaced it by a shorter one
                return data
        raise DataError(f"{self.url}/{name} is written again and again. Run the command later.")

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        return self._client.sized(name, size) or b""

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        pass

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        found = self._client.stat(name)
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        self._client.put(name, data)

    def names(self) -> list[str] | None:  # noqa: D102 - Storage
        return self._client.names()

    def remove(self, names: Iterable[str]) -> None:  # noqa: D102 - Storage
        for name in names:
            self._client.delete(name)

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        if others := set(self._client.find("*")) - {name.partition("/")[0] for name in contents}:
            raise UsageError(
                f"{self.url} is not empty and no cache: it contains {min(others)}. Choose "
                "another --out."
            )
        if self.size(MANIFEST) is not None and self.read(MANIFEST) != contents[MANIFEST]:
            return  # another process has created it
        for name in sorted(contents, key=lambda name: name == MANIFEST):
            self.write(name, contents[name])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield  # object stores have no locks: a writer checks afterwards what it has written

    def creation_lock(self) -> contextlib.AbstractContextManager[None]:  # noqa: D102 - Storage
        lock = disk_cache.DiskCache().path / f"{disk_cache.key(self.url)}.lock"
        return atomic.locked(lock, WAITING.format(self))

    def __str__(self) -> str:
        return self.url
