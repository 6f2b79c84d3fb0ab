"""Shards compressed by gzip, and Parquet and Arrow files, unpacked once into the data folder.

Such a file can only be read from its beginning, or page by page, and the images of a data set are
read in any order. A copy is a plain shard with its index; `kdcache shard` writes plain shards of
such a source.
"""

import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cache_tools.columnar import rows
from cache_tools.columnar.layout import Layout
from cache_tools.columnar.rows import is_table
from cache_tools.data import tar_index
from cache_tools.data.tar_index import TarIndex
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import describe_file
from cache_tools.runtime import progress
from cache_tools.storage import atomic, disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.fsspec_client import FsspecClient

PACKED = (".tar.gz", ".tgz")
SHARDS = (".tar", *PACKED, *rows.SUFFIXES)
"""Ends of the names of shards."""
_ROWS = "rows 1"
"""Version of the copies of files of rows, in the names of their copies."""
_PIECE = 2**24
_DENSEST, _SMALL = 100, 2**26
"""A shard of more than 64 MiB is at most so many times its compressed size. Pictures do not
compress; headers of a tar, labels and small bitmaps do, by less. A stream of zeros has 1,030."""


def is_shard(name: str) -> bool:
    """Check if a name is that of a shard; hidden files are none (`._x.tar` of a Mac)."""
    hidden = name.rpartition("/")[2].startswith(".")
    return is_table(name) or (name.lower().endswith((".tar", *PACKED)) and not hidden)


def is_packed(name: str) -> bool:
    """Check if a name is that of a shard that has to be unpacked."""
    return name.lower().endswith((*PACKED, *rows.SUFFIXES))


def of_files(paths: Sequence[Path], layout: Layout | None = None) -> list[Path]:
    """Return plain shards: the files themselves, or copies of those that have to be unpacked.

    `layout` is that of files of rows.

    Raises:
        DataError: A shard is missing or damaged.
        UsageError: The data folder has no room for them.
    """
    packed = [path for path in paths if is_packed(path.name)]
    kind = _kind(layout)
    try:
        keys = {disk_cache.key(*kind, disk_cache.file_key(p)): p for p in packed}
    except OSError as error:
        raise DataError(f"cannot read the shard {error.filename}: {error.strerror}.") from None

    def unpack(key: str, to: Path, cache: DiskCache) -> str:
        _unpack(keys[key], layout, to, cache, str(keys[key]))
        return str(keys[key])

    copies = iter(_copies({key: path.stat().st_size for key, path in keys.items()}, unpack))
    return [next(copies) if is_packed(path.name) else path for path in paths]


def of_url(remote: FsspecClient, names: Sequence[str], layout: Layout | None = None) -> list[Path]:
    """Return plain copies of shards behind a URL, all of them; raises as `of_files`."""
    stats = {name: remote.stat(name) for name in names}
    if absent := [name for name, stat in stats.items() if stat is None]:
        raise UsageError(f"{len(absent):,} shards are not at {remote.url}, first {absent[0]}.")
    kind = _kind(layout)
    keys = {disk_cache.key(*kind, remote.url, n, *(s or ())): n for n, s in stats.items()}
    sizes = {key: (stats[name] or (0, ""))[0] for key, name in keys.items()}

    def unpack(key: str, to: Path, cache: DiskCache) -> str:
        name = keys[key]
        if not is_packed(name):
            remote.download(name, sizes[key], to, lambda _: None)
            return f"{remote.url}/{name}"
        with atomic.temporary(to.with_name("packed")) as packed:
            remote.download(name, sizes[key], packed, lambda _: None)
            _unpack(packed, layout, to, cache, f"{remote.url}/{name}")
        return f"{remote.url}/{name}"

    return _copies(sizes, unpack)


def index_of(path: Path, cache: DiskCache) -> TarIndex | None:
    """Read the index of a copy, which has checksums; None where one of them cannot be right."""
    with contextlib.suppress(OSError):  # DataError, too
        if (data := cache.index(path.name)) is not None:
            index = tar_index.unpack(data, str(path))
            if index is not None and index.crc_N is not None:
                return index if index.tar_bytes == path.stat().st_size else None
    return None


def _copies(sizes: dict[str, int], unpack: Callable[[str, Path, DiskCache], str]) -> list[Path]:
    """Make the copies that are missing or cannot be right, after making room for all.

    `unpack` returns the name of the origin.
    """
    cache, found = DiskCache(), []
    if not sizes:
        return []
    fit = cache.evict(sizes)
    with progress.bar("unpack shards", len(sizes), "shards") as advance:
        for key in sizes:
            path = cache.shard(key)
            if path is None or index_of(path, cache) is None:
                if key not in fit:
                    raise _no_room(cache)
                with cache.writing(key) as partial:
                    path = cache.shard(key)
                    if path is None or index_of(path, cache) is None:
                        name = unpack(key, partial, cache)
                        with partial.open("rb") as file:
                            index = tar_index.scan(file, name, checksums=True)
                        cache.store_index(key, index.pack())
                path = cache.shard(key)
            if path is None:
                raise DataError(f"a copy in {cache.path} is gone. Run the same command again.")
            found.append(path)
            advance(1)
    return found


def _kind(layout: Layout | None) -> tuple[object, ...]:
    return ("unpacked",) if layout is None else (_ROWS, layout)


def _unpack(path: Path, layout: Layout | None, to: Path, cache: DiskCache, name: str) -> None:
    size, most = 0, max(_SMALL, _DENSEST * path.stat().st_size)
    with to.open("wb") as out:
        for piece in rows.tar(path, layout, name) if layout else _gunzip(path, name):
            if (size := size + len(piece)) > most:
                raise DataError(
                    f"{name} unpacks to more than {_DENSEST} times its size, which no shard of "
                    "pictures does. Unpack it yourself if it is what it should be."
                )
            if not cache.reserve(len(piece)):
                raise _no_room(cache)
            out.write(piece)


def _gunzip(path: Path, name: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) as packed:
            while piece := packed.read(_PIECE):
                yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot unpack {name}{describe_file(path)}: {error}. Fetch or write it again."
        ) from None


def _no_room(cache: DiskCache) -> UsageError:
    return UsageError(
        f"the data folder {cache.path} has no room for the unpacked shards within "
        f"{disk_cache.LIMIT} or the free disk. Unpack them yourself, or name a folder with room in "
        f"${disk_cache.FOLDER} or by --data-cache."
    )
