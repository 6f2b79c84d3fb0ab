"""Storage of a cache's files: a folder, a zip of it, or an object store. Names in, bytes out.

Names are relative, with slashes, and come from the layout alone: no text found in a cache is ever
used as a path. A folder is written file by file, each atomically and durably; an object store by
whole-object PUT; a zip is read only.
"""

import contextlib
import logging
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from cache_tools.errors import CacheDamaged, CacheNotFound, DataError, UsageError
from cache_tools.storage import atomic, disk_cache, folder_kind, fsspec_client, paths, zips

log = logging.getLogger("kdcache")
T = TypeVar("T")

MAX_FILE = 2**30
"""Bytes of the largest file of a cache; a larger one is not read."""
_MOST_EXPANSION = 4
"""Of the files of a cache, which are compressed already, in a zip."""
MANIFEST = "zarr.json"
"""Name of the manifest (`store.manifest`), which makes a folder a cache."""
_HERE = "file://"
_WAITING = "waiting for another process that is making {}"
_FETCH = "Fetch the cache again from where it came."
_REMOVE = (
    "Remove it and run the command that made the cache again, or fetch the cache again from where "
    "it came."
)


class Storage(Protocol):
    """Files of a cache by name."""

    location: str
    """Absolute path, or the URL with user and query: to open it again, never for texts."""
    tries: int
    """Reads of bytes that differ from their digest before that is an error; 1 without network."""

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: There is no such file.
            CacheDamaged: It is larger than `limit`, or outside of the cache.
            OSError: It cannot be read.
        """
        ...

    def read_sized(self, name: str, size: int) -> bytes:
        """Read a file of `size` bytes; return other bytes, such as none, when its size differs.

        Raises:
            FileNotFoundError: There is no such file.
        """
        ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None when there is none."""
        ...

    def invalidate(self, name: str) -> None:
        """Drop a damaged local copy of a file, so that the next read goes to its origin."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def names(self) -> list[str] | None:
        """List every file but temporary ones, sorted; None where files cannot be listed."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those of `names` that there are, in this order, and folders left empty."""
        ...

    def initialize(self, contents: Mapping[str, bytes]) -> None:
        """Write a new cache, its manifest last; of several concurrent ones, one remains.

        Raises:
            UsageError: There are other files than those of a cache.
        """
        ...

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Lock other processes out of committing to this cache during the body, if possible."""
        ...

    def creation_lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock other processes out of creating this cache, on this machine at least."""
        ...

    def __str__(self) -> str: ...


class Folder:
    """Folder on this machine."""

    tries = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = Path(os.path.realpath(path))
        self.location = str(self._root)

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        path = self._inside(name)
        try:
            found = path.stat()
        except NotADirectoryError as error:  # a file where a folder should be
            raise FileNotFoundError(*error.args) from None
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device might never end
            raise CacheDamaged(f"{self.path / name} is not a file. {_REMOVE}")
        if found.st_size > limit:
            raise _too_large(str(self.path / name), limit)
        return path.read_bytes()

    def read_sized(self, name: str, size: int) -> bytes:  # noqa: D102 - Storage
        return self.read(name) if self.size(name) in (size, None) else b""

    def invalidate(self, name: str) -> None:  # noqa: D102 - Storage
        pass  # these files are the origin

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            found = (self._root / name).stat()
        except PermissionError:  # what cannot be looked at is not missing
            raise
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        path = self._inside(str(Path(name).parent)) / Path(name).name
        with contextlib.suppress(OSError):  # a link, or an empty folder, in place of the file
            path.unlink() if path.is_symlink() else path.rmdir()
        self._inside(name)
        atomic.write(self.path / name, data)

    def names(self) -> list[str]:  # noqa: D102 - Storage
        found = (p for p in self._root.rglob("*") if p.is_symlink() or not p.is_dir())
        return sorted(
            path.relative_to(self._root).as_posix()
            for path in found
            if not atomic.is_temporary(path.name)
        )

    def remove(self, names: Iterable[str]) -> None:  # noqa: D102 - Storage
        try:
            for name in names:
                self._inside(name).unlink(missing_ok=True)
            for folder in sorted(self._root.rglob("*"), reverse=True):
                if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise atomic.cannot_write(self.path, error) from None

    def _inside(self, name: str) -> Path:
        """Resolve a name; CacheDamaged when links lead out of the folder."""
        path = self._root / name
        try:
            inside = path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # a loop of links
            inside = False
        if not inside:
            raise CacheDamaged(
                f"{self.path / name} leads out of the cache folder; a cache holds no links. "
                f"{_REMOVE}"
            )
        return path

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        if (self._root / MANIFEST).is_file():  # another process has created it
            return
        if self._root.exists() and (not self._root.is_dir() or self._has_others(contents)):
            raise UsageError(
                f"{self.path} exists and is not an empty folder. Choose another --out."
            )
        if (
            self._root.is_dir()
        ):  # it may be a link's, a mount point, or the current folder: it stays
            for inner in sorted(contents, key=lambda name: name == MANIFEST):
                self.write(inner, contents[inner])
            return
        try:
            with atomic.temporary(self._root, folder=True) as building:
                for inner, data in contents.items():
                    atomic.write(building / inner, data)
                building.rename(self._root)
            atomic.sync_folder(self._root.parent)
        except OSError as error:
            if (self._root / MANIFEST).is_file():
                return
            raise atomic.cannot_write(self.path, error) from None

    def _has_others(self, contents: Mapping[str, bytes]) -> bool:
        """Check for files that are none of a cache whose creation was interrupted."""
        return any(
            path.relative_to(self._root).as_posix() not in contents
            and not path.name.endswith(atomic.PARTIAL)
            for path in self._root.rglob("*")
            if not path.is_dir()
        )

    @property
    def _lock(self) -> Path:
        return self._root.with_name(f"{self._root.name}.lock")

    def locked(self) -> contextlib.AbstractContextManager[None]:  # noqa: D102 - Storage
        return atomic.locked(self._lock, folder=self._root)

    @contextlib.contextmanager
    def creation_lock(self) -> Iterator[None]:  # noqa: D102 - Storage
        new = [folder for folder in self._root.parents if not folder.exists()]
        with atomic.locked(self._lock, _WAITING.format(self), self._root):
            try:
                yield
            finally:
                if not (self._root / MANIFEST).is_file():  # the lock of nothing would stay
                    with contextlib.suppress(OSError):
                        self._lock.unlink(missing_ok=True)
                        for folder in new:
                            folder.rmdir()

    def __str__(self) -> str:
        return str(self.path)


class Zip:
    """Zip of a cache folder, with or without the folder's name as prefix; read only."""

    tries = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path.resolve())
        try:
            self._zip = zipfile.ZipFile(path)
            zips.check(self._zip, path.stat().st_size, _MOST_EXPANSION)
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises many kinds for forged files
            raise CacheDamaged(
                f"{path} cannot be opened as a zip: {error}. {_FETCH} If it is your own, unpack it "
                "and name the folder."
            ) from None
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
        except MemoryError:
            raise
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

    def names(self) -> list[str]:  # noqa: D102 - Storage
        below = (n for n in self._zip.namelist() if n.startswith(self._prefix))
        return sorted(n.removeprefix(self._prefix) for n in below if not n.endswith("/"))

    def remove(self, names: Iterable[str]) -> None:  # noqa: D102 - Storage
        self.write(MANIFEST, b"")

    def initialize(self, contents: Mapping[str, bytes]) -> None:  # noqa: D102 - Storage
        self.write(MANIFEST, contents[MANIFEST])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield

    creation_lock = locked

    def __str__(self) -> str:
        return str(self.path)


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
                raise _too_large(f"{self.url}/{name}", limit)
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
        return atomic.locked(lock, _WAITING.format(self))

    def __str__(self) -> str:
        return self.url


def with_retry(storage: Storage, read: Callable[[], T], *names: str) -> T:
    """Call `read`, which checks the files `names`, again where a network may have changed them.

    It raises CacheDamaged when they differ from what was written.
    """
    pause = fsspec_client.FIRST_PAUSE
    for _ in range(storage.tries - 1):
        try:
            return read()
        except CacheDamaged as error:
            log.info("%s It is read again in %.1f s.", str(error).partition(". ")[0], pause)
        for name in names:
            storage.invalidate(name)
        time.sleep(pause)
        pause *= 2
    return read()


def open_storage(location: str | Path) -> Storage:
    """Open the storage at a path or URL, with or without a cache in it.

    Raises:
        UsageError: `location` is no URL that can be opened.
    """
    text = str(location)
    if text.startswith(_HERE):  # `Folder` has atomic writes and a lock, fsspec's has neither
        text = text.removeprefix(_HERE)
        if not text.startswith("/"):
            raise UsageError(
                f"{location} names another machine, {text.partition('/')[0]!r}. A folder of this "
                f"one has three slashes: {Path(text).resolve().as_uri()}."
            )
    if "://" in text:
        return ObjectStore(text)
    path = Path(paths.expand(text))
    if not text or not Path(os.path.realpath(path)).name:
        raise UsageError(f"{text!r} is no folder for a cache. Pass its path or URL.")
    return Zip(path) if path.is_file() and path.suffix == ".zip" else Folder(path)


def open_existing(location: str | Path) -> Storage:
    """Open the storage of the cache at a path or URL.

    Raises:
        CacheNotFound: It is a folder without a manifest.
    """
    found = open_storage(location)
    if isinstance(found, Folder) and not (found.path / MANIFEST).is_file():
        if found.path.is_symlink() and not found.path.exists():
            raise CacheNotFound(
                f"{found} is a link to {found.path.readlink()}, where nothing is. Correct the "
                "link, or pass the folder of the cache."
            )
        if os.path.lexists(root := found.path / MANIFEST):
            link = f"a link to {root.readlink()}, where no file is" if root.is_symlink() else ""
            what = f"{root} is {link or 'no file'}"
            raise CacheNotFound(f"there is no cache at {found}: {what}. {_REMOVE}")
        if kind := folder_kind.likely_kind(found.path):
            raise CacheNotFound(
                f"there is no cache at {found}: it seems to be {kind}. Pass the folder that "
                f"kdcache cache has written, its --out, which has {MANIFEST}."
            )
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
