"""The indices of shards on this machine: each shard's headers are read once, and never again.

Reading the headers of ImageNet's 1,282 shards takes the better part of a minute, reading their
indices a third of a second. An index beside its shard is used unless the shard was written, moved
or copied after it: then the headers are read again, once on each machine.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cache_tools.data import tar_index, unpacked
from cache_tools.data.tar_index import TarIndex
from cache_tools.errors import DataError
from cache_tools.runtime import progress
from cache_tools.storage import disk_cache
from cache_tools.storage.disk_cache import DiskCache


def indices(paths: list[Path]) -> list[TarIndex]:
    """Read or make the index of every shard.

    Raises:
        DataError: A shard is not there or cannot be read.
    """
    found = [_known_index(path) for path in paths]
    lacking = [i for i, index in enumerate(found) if index is None]
    if lacking:
        with progress.bar("read the headers of shards", len(lacking), "shards") as advance:
            for i in lacking:
                found[i] = _read_index(paths[i])
                advance(1)
    return [index for index in found if index is not None]


def _known_index(path: Path) -> TarIndex | None:
    """Read the index of a shard on this machine, from beside it or the data folder, or None.

    Raises:
        DataError: The shard is not there.
    """
    cache = DiskCache()
    if cache.is_copy(path):
        return unpacked.index_of(path, cache)
    with _naming(path):
        found = path.stat()
        beside = path.with_name(path.name + tar_index.SUFFIX)
        changed = max(found.st_mtime_ns, found.st_ctime_ns)
        index_bytes = beside.stat().st_size if beside.is_file() else 0
        if 0 < index_bytes <= tar_index.largest(found.st_size) and (
            beside.stat().st_mtime_ns >= changed
        ):
            index = tar_index.unpack(beside.read_bytes(), str(beside))
            if index is not None and index.tar_bytes == found.st_size:
                return index
        if (data := cache.index(disk_cache.file_key(path))) is not None:
            with contextlib.suppress(DataError):
                index = tar_index.unpack(data, str(path))
                return index if index is not None and index.tar_bytes == found.st_size else None
    return None


def _read_index(path: Path) -> TarIndex:
    """Make the index of a shard on this machine from its headers, and store it."""
    with _naming(path):
        name = disk_cache.file_key(path)
        with path.open("rb") as file:
            index = tar_index.scan(file, str(path), checksums=False)
    DiskCache().store_index(name, index.pack())
    return index


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, PermissionError):
        raise
    except OSError as error:
        raise DataError(f"cannot read the shard {path}: {error}. Fetch it again.") from None
