"""Zip of a cache folder; read only."""

import contextlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.storage import zips
from cache_tools.storage.base import MANIFEST, MAX_FILE, too_large

_MOST_EXPANSION = 4
"""Of the files of a cache, which are compressed already, in a zip."""
_FETCH = "Fetch the cache again from where it came."


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
            raise too_large(f"{name} in {self.path}", limit)
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
            raise too_large(f"{name} in {self.path}", limit)
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
