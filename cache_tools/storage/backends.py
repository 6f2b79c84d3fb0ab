"""Where a cache's files lie: a folder, a zip of it, or an object store. Names in, bytes out.

Names are relative, with slashes, and come from the layout alone: no text found in a cache is ever
followed as a path. A folder is written file by file, each atomically and durably; an object store
by whole-object PUT; a zip is read only.
"""

import contextlib
import logging
import shutil
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from cache_tools.errors import CacheDamaged, CacheNotFound, DataError, KdcacheError, UsageError
from cache_tools.storage import atomic, disk_cache, fsspec_client

log = logging.getLogger("kdcache")
T = TypeVar("T")

MAX_FILE = 2**30
"""No file of a cache is larger than this many bytes; a larger one is not read."""
MANIFEST = "zarr.json"
"""What makes a folder a cache; see `manifest`."""
_HERE = "file://"
_WAITING = "waiting for another process that is making {}"
_FETCH = "Fetch the cache again from where it came."


class Storage(Protocol):
    """What a cache needs of the place it lies in."""

    tries: int
    """How often bytes that differ from their digest are asked for: once where no network is."""

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """Bytes of a file.

        Raises:
            FileNotFoundError: It is not there.
            CacheDamaged: It is larger than `limit`, or lies outside of the cache.
            OSError: It cannot be read.
        """
        ...

    def read_sized(self, name: str, size: int) -> bytes:
        """Bytes of a file that should have `size` of them; any others when it has not.

        Raises:
            FileNotFoundError: It is not there.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None when it is not there."""
        ...

    def invalidate(self, name: str) -> None:
        """Drop a copy of a file that turned out wrong, so that the next read asks its origin."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def initialize(self, contents: Mapping[str, bytes]) -> None:
        """Write a new cache, its manifest last; of several that do so at once, one is seen.

        Raises:
            UsageError: Something that is not a cache lies there.
        """
        ...

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from committing to this cache while the body runs, if possible."""
        ...

    def creation_lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from making this cache while the body runs, on this machine at least."""
        ...

    def __str__(self) -> str: ...


class Folder:
    """A folder on this machine."""

    tries = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        path = self._inside(name)
        try:
            found = path.stat()
        except NotADirectoryError as error:  # a file where a folder should be
            raise FileNotFoundError(*error.args) from None
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device might never end
            raise CacheDamaged(f"{self.path / name} is not a file. {_FETCH}")
        if found.st_size > limit:
            raise _too_large(str(self.path / name), limit)
        return path.read_bytes()

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        return self.read(name) if self.size(name) in (size, None) else b""

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        pass  # what lies here is no copy

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            return (self._root / name).stat().st_size
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        self._inside(name)
        atomic.write(self.path / name, data)

    def _inside(self, name: str) -> Path:
        """The path of a file, after a look at where links on the way lead."""
        path = self._root / name
        try:
            inside = path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # links that lead to themselves
            inside = False
        if not inside:
            raise CacheDamaged(
                f"{self.path / name} leads out of the cache folder; a cache holds no links. "
                f"{_FETCH}"
            )
        return path

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        if (self.path / MANIFEST).is_file():  # another process was first
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(
                f"{self.path} exists and is not an empty folder. Choose another --out."
            )
        name = f"{self.path.name}.{uuid.uuid4().hex[:12]}{atomic.PARTIAL}"
        building = self.path.with_name(name)
        try:
            for inner, data in contents.items():
                atomic.write(building / inner, data)
            if self.path.exists():
                self.path.rmdir()
            building.rename(self.path)
        except OSError as error:
            if (self.path / MANIFEST).is_file():
                return
            raise KdcacheError(f"cannot create the cache {self.path}: {error}.") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        atomic.sync_folder(self.path.parent)

    def locked(self) -> contextlib.AbstractContextManager[None]:  # noqa: D102 - Storage
        return atomic.locked(self._lock)

    def creation_lock(self) -> contextlib.AbstractContextManager[None]:  # noqa: D102 - Storage
        return atomic.locked(self._lock, _WAITING.format(self))

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def __str__(self) -> str:
        return str(self.path)


class Zip:
    """A zip of a cache folder, with or without the folder's name in front; read only."""

    tries = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises many kinds for a forged one
            raise CacheDamaged(f"{path} cannot be opened as a zip: {error}.") from None
        manifests = [n for n in self._zip.namelist() if n.count("/") <= 1]
        inner = [n for n in manifests if n == MANIFEST or n.endswith(f"/{MANIFEST}")]
        self._prefix = min(inner, key=len, default=MANIFEST).removesuffix(MANIFEST)

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        try:
            info = self._zip.getinfo(self._prefix + name)
        except KeyError:
            raise FileNotFoundError(f"{name} is not in {self.path}") from None
        if info.file_size > limit:
            raise _too_large(f"{name} in {self.path}", limit)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CacheDamaged(f"{name} in {self.path} is neither stored nor deflated. {_FETCH}")
        try:
            with self._zip.open(info) as file:
                data = file.read(limit + 1)
        except Exception as error:  # zipfile and zlib raise many kinds
            raise CacheDamaged(f"{name} in {self.path} cannot be read: {error}. {_FETCH}") from None
        if len(data) > limit:
            raise _too_large(f"{name} in {self.path}", limit)
        return data

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        return self.read(name) if self.size(name) in (size, None) else b""

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        pass

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            return self._zip.getinfo(self._prefix + name).file_size
        except KeyError:
            return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        raise UsageError(f"{self.path} is a zip, which is read only. Unpack it to write {name}.")

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        self.write(MANIFEST, contents[MANIFEST])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield

    creation_lock = locked

    def __str__(self) -> str:
        return str(self.path)


class ObjectStore:
    """A folder of an object store or another file system that fsspec knows by its URL."""

    tries = 4

    def __init__(self, url: str) -> None:
        self._remote = fsspec_client.FsspecClient(url)
        self.url = self._remote.url

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        for _ in range(self.tries):
            if (found := self._remote.stat(name)) is None:
                raise FileNotFoundError(f"{self.url}/{name}")
            if found[0] > limit:
                raise _too_large(f"{self.url}/{name}", limit)
            data = self._remote.sized(name, found[0])
            if data is not None:  # else another writer has put a shorter one there meanwhile
                return data
        raise DataError(f"{self.url}/{name} is written again and again. Run the command later.")

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        return self._remote.sized(name, size) or b""

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        pass

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        found = self._remote.stat(name)
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        self._remote.put(name, data)

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        if strangers := set(self._remote.find("*")) - {name.partition("/")[0] for name in contents}:
            raise UsageError(
                f"{self.url} is not empty and no cache: {min(strangers)} lies there. Choose "
                "another --out."
            )
        if self.size(MANIFEST) is not None and self.read(MANIFEST) != contents[MANIFEST]:
            return  # another process was first
        for name in sorted(contents, key=lambda name: name == MANIFEST):
            self.write(name, contents[name])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield  # object stores know no locks: a writer looks again at what it has written

    def creation_lock(self) -> contextlib.AbstractContextManager[None]:  # noqa: D102 - Storage
        lock = disk_cache.DiskCache().path / f"{disk_cache.key(self.url)}.lock"
        return atomic.locked(lock, _WAITING.format(self))

    def __str__(self) -> str:
        return self.url


def with_retry(storage: Storage, ask: Callable[[], T], *names: str) -> T:
    """What `ask` reads and checks; asked again where a network may have changed the bytes.

    Args:
        storage: Where it reads.
        ask: Reads files, and raises CacheDamaged when they are not as they were written.
        names: Those files.
    """
    pause = fsspec_client.FIRST_PAUSE
    for _ in range(storage.tries - 1):
        try:
            return ask()
        except CacheDamaged as error:
            log.info("%s It is asked for again in %.1f s.", str(error).partition(". ")[0], pause)
        for name in names:
            storage.invalidate(name)
        time.sleep(pause)
        pause *= 2
    return ask()


def open_storage(where: str | Path) -> Storage:
    """The storage at a path or URL, whether there is a cache or not.

    Raises:
        UsageError: There can be none.
    """
    text = str(where)
    if text.startswith(_HERE):  # a folder has atomic writes and a lock, fsspec's has neither
        text = text.removeprefix(_HERE)
        if not text.startswith("/"):
            raise UsageError(
                f"{where} names another machine, {text.partition('/')[0]!r}. A folder of this one "
                f"has three slashes: {Path(text).resolve().as_uri()}."
            )
    if "://" in text:
        return ObjectStore(text)
    path = Path(text)
    return Zip(path) if path.is_file() and path.suffix == ".zip" else Folder(path)


def open_existing(where: str | Path) -> Storage:
    """The storage of the cache at a path or URL.

    Raises:
        CacheNotFound: Nothing is there.
    """
    found = open_storage(where)
    if isinstance(found, Folder) and not (found.path / MANIFEST).is_file():
        raise CacheNotFound(
            f"there is no cache at {found}. Check the path, or make one with: kdcache cache RECIPE "
            f"--data DATA --teacher TEACHER --out {found}"
        )
    return found


def _too_large(what: str, limit: int) -> CacheDamaged:
    return CacheDamaged(
        f"{what} is larger than the {limit:,} bytes such a file can have. It was not read; fetch "
        "the cache again from where it came."
    )
