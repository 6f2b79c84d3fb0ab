"""Folder of a cache on this machine."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.storage import atomic
from cache_tools.storage.base import MANIFEST, MAX_FILE, REMOVE, WAITING, too_large


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
            raise CacheDamaged(f"{self.path / name} is not a file. {REMOVE}")
        if found.st_size > limit:
            raise too_large(str(self.path / name), limit)
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
                f"{REMOVE}"
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
        with atomic.locked(self._lock, WAITING.format(self), self._root):
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
