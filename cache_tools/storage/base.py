"""Files of a cache by name, wherever they are stored: names in, bytes out.

Names are relative, with slashes, and come from the layout alone: no text found in a cache is ever
used as a path. `folder` writes file by file, each atomically and durably; `object_store` by
whole-object PUT; `zip_folder` is read only.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from cache_tools.errors import CacheDamaged
from cache_tools.storage import fsspec_client

log = logging.getLogger("kdcache")
T = TypeVar("T")

MAX_FILE = 2**30
"""Bytes of the largest file of a cache; a larger one is not read."""
MANIFEST = "zarr.json"
"""Name of the manifest (`store.manifest`), which makes a folder a cache."""
WAITING = "waiting for another process that is making {}"
REMOVE = (
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


def too_large(what: str, limit: int) -> CacheDamaged:
    """Build the error for a file of more bytes than one of a cache can have."""
    return CacheDamaged(
        f"{what} is larger than the {limit:,} bytes such a file can have. It was not read; fetch "
        "the cache again from where it came."
    )
