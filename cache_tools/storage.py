"""Where a cache's files lie: a folder, a zip of it, or an object store. Names in, bytes out.

Names are relative, with slashes, and come from the layout alone: no text found in a cache is ever
followed as a path. A folder is written file by file, each atomically and durably; an object store
by whole-object PUT; a zip is read only.
"""

import contextlib
import fcntl
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cache_tools import files
from cache_tools.errors import CacheDamaged, CacheNotFound, KdcacheError, UsageError

MAX_FILE = 2**30
"""No file of a cache is larger than this many bytes; a larger one is not read."""
_FETCH = "Fetch the cache again from where it came."


class Storage(Protocol):
    """What a cache needs of the place it lies in."""

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """Bytes of a file.

        Raises:
            FileNotFoundError: It is not there.
            CacheDamaged: It is larger than `limit`, or lies outside of the cache.
            OSError: It cannot be read.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None when it is not there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from committing to this cache while the body runs, if possible."""
        ...

    def __str__(self) -> str: ...


class Folder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        path = self._inside(name)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device might never end
            raise CacheDamaged(f"{self.path / name} is not a file. {_FETCH}")
        if found.st_size > limit:
            raise _too_large(str(self.path / name), limit)
        return path.read_bytes()

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            return (self._root / name).stat().st_size
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        self._inside(name)
        files.write(self.path / name, data)

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

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock that the kernel drops when its holder dies; none where it knows no locks."""
        path = self.path.with_name(f"{self.path.name}.lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(path, flags, 0o644)
        except OSError as error:
            raise KdcacheError(f"cannot lock {path}: {error.strerror}. Remove it.") from None
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def __str__(self) -> str:
        return str(self.path)


class Zip:
    """A zip of a cache folder, with or without the folder's name in front; read only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises many kinds for a forged one
            raise CacheDamaged(f"{path} cannot be opened as a zip: {error}.") from None
        manifests = [n for n in self._zip.namelist() if n.count("/") <= 1]
        inner = [n for n in manifests if n == "zarr.json" or n.endswith("/zarr.json")]
        self._prefix = min(inner, key=len, default="zarr.json").removesuffix("zarr.json")

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

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            return self._zip.getinfo(self._prefix + name).file_size
        except KeyError:
            return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        raise UsageError(f"{self.path} is a zip, which is read only. Unpack it to write {name}.")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield

    def __str__(self) -> str:
        return str(self.path)


class Remote:
    """A folder of an object store or another file system that fsspec knows by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise UsageError(
                f"{url} needs a package that is not installed ({error}). "
                "Run: pip install 'kdcache[remote]'."
            ) from None
        except ValueError as error:
            raise UsageError(f"{url} cannot be opened: {error}.") from None

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:  # noqa: D102 - Storage
        path = f"{self._root}/{name}"
        with self._explained(name):
            if (self.size(name) or 0) > limit:
                raise _too_large(f"{self.url}/{name}", limit)
            return bytes(self._fs.cat_file(path))

    def size(self, name: str) -> int | None:  # noqa: D102 - Storage
        try:
            size: Any = self._fs.info(f"{self._root}/{name}").get("size")
        except FileNotFoundError:
            return None
        return None if size is None else int(size)

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        with self._explained(name):
            self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", data)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102 - Storage
        yield  # object stores know no locks: a writer looks again at what it has written

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, KdcacheError):
            raise
        except Exception as error:  # every file system of fsspec raises kinds of its own
            raise KdcacheError(
                f"{self.url}/{name}: {type(error).__name__}: {error}. Check the URL, the network "
                "and your credentials, and run the same command again."
            ) from None

    def __str__(self) -> str:
        return self.url


def locate(where: str | Path) -> Storage:
    """The storage at a path or URL.

    Raises:
        CacheNotFound: Nothing is there.
    """
    text = str(where)
    if "://" in text:
        return Remote(text)
    path = Path(text)
    if path.is_file() and path.suffix == ".zip":
        return Zip(path)
    if not (path / "zarr.json").is_file():
        raise CacheNotFound(
            f"there is no cache at {path}. Make one with: kdcache cache RECIPE --data DATA "
            f"--teacher TEACHER --out {path}"
        )
    return Folder(path)


def _too_large(what: str, limit: int) -> CacheDamaged:
    return CacheDamaged(
        f"{what} is larger than the {limit:,} bytes such a file can have. It was not read; fetch "
        "the cache again from where it came."
    )
