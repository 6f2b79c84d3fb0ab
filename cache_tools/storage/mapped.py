"""Arrays in files of the data folder: made once on a machine, memory-mapped by all its processes.

A sample table and the index of a data set of fourteen million samples take gigabytes and a minute
of work, and are the same in the eight processes of a node. One process makes the file while the
others wait for its lock; pages of a map are in memory once for all of them, and only while they are
read. A file has one line of JSON, the arrays, and a SHA-256 of its name and of all before it. It
appears whole or not at all, its digest is compared whenever it is opened, and one that fails is
made again, as is one that was evicted or deleted.

A file on a network file system is read into memory instead: another machine can remove it there,
and a page that is read then ends the process (SIGBUS).
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache_tools import file_contents
from cache_tools.errors import KdcacheError
from cache_tools.storage.disk_cache import LIMIT, DiskCache

log = logging.getLogger("kdcache")
WORTH = 2**18
"""Samples from which a file is made; fewer are read in a second or two."""
_ALIGNED, _DIGEST, _PIECE = 64, 32, 2**22
_OF_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs")
"""File systems on which a file that is open can be removed by another machine."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name, and facts that JSON can contain."""

    arrays: Mapping[str, NDArray[Any]]
    """Arrays of one axis, little endian; those of a file cannot be written to."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts beside them."""


def load(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Map the file called `name` (a `disk_cache.table_key`), which `make` makes if there is none.

    Where the data folder has no room or cannot be written, what `make` made is returned itself.
    """
    kept = DiskCache()
    kept.sweep_shards()
    if (found := _open(kept, name)) is not None:
        return found
    made: Arrays | None = None
    failed: Exception | None = None
    try:
        with kept.writing(name) as partial:
            if (found := _open(kept, name)) is not None:  # of the process that held the lock
                return found
            try:
                made = make()
            except Exception as error:  # an OSError is of what it reads, not of the file
                failed = error
            else:
                _keep(kept, partial, name, made)
    except KdcacheError as error:
        log.warning("not shared among the processes of this machine: %s", error)
    if failed is not None:
        raise failed
    made = made or make()
    return _open(kept, name) or made


def _keep(kept: DiskCache, partial: Path, name: str, made: Arrays) -> None:
    """Write a file if there is room for it; evicts others."""
    line = _head(made)
    size = len(line) + sum(map(_padded, made.arrays.values())) + _DIGEST
    if kept.reserve(size, down_to=1.0):  # shards of a data set are there to be read next
        _write(partial, name, line, made)
        return
    log.warning(
        "%s has no room for %.1f GB that its processes could share: each has its own. "
        "Pass --data-cache with a larger folder, or raise $%s",
        kept.path, size / 1e9, LIMIT,
    )  # fmt: skip


def _padded(values: NDArray[Any]) -> int:
    """Bytes of an array in a file."""
    return -(-values.nbytes // _ALIGNED) * _ALIGNED


def _head(made: Arrays) -> bytes:
    """Return the line of JSON before the arrays."""
    columns, at = [], 0
    for column, values in made.arrays.items():
        columns.append([column, values.dtype.str, len(values), at])
        at += _padded(values)
    line = json.dumps({"arrays": columns, "facts": made.facts}).encode()
    return line + b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"


def _write(path: Path, name: str, line: bytes, made: Arrays) -> None:
    digest = hashlib.sha256(name.encode() + b"\n")
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        put(line)
        for values in made.arrays.values():
            if values.size:
                put(np.ascontiguousarray(values).data.cast("B"))
            put(bytes(-values.nbytes % _ALIGNED))
        file.write(digest.digest())


def _open(kept: DiskCache, name: str) -> Arrays | None:
    """Map a file, or read it once from a network; None if there is none, or it is damaged."""
    if (path := kept.shard(name)) is None:
        return None
    try:
        with path.open("rb") as file:
            line = file.readline(file_contents.MAX_JSON)
            head = file_contents.parse_json(line)
            spans = [at + count * np.dtype(kind).itemsize for _, kind, count, at in head["arrays"]]
            size = -(-max(spans, default=0) // _ALIGNED) * _ALIGNED
            if path.stat().st_size != len(line) + size + _DIGEST:
                raise ValueError("its size differs")
            file.seek(0)
            if (kind := _file_system(path)).startswith(_OF_NETWORK):
                _log_network(path.parent, kind)
                data = np.fromfile(file, np.uint8)
                data.flags.writeable = False
                digest = hashlib.sha256(name.encode() + b"\n")
                digest.update(data[:-_DIGEST].data)
                whole = data[-_DIGEST:].tobytes() == digest.digest()
            else:
                whole = _is_whole(file, name)
                data = np.asarray(np.memmap(file, np.uint8, "r"))
            if not whole:
                raise ValueError("its digest differs")
            data = data[len(line) : -_DIGEST]
        arrays = {
            column: data[at : at + count * np.dtype(kind).itemsize].view(kind)
            for column, kind, count, at in head["arrays"]
        }
        return Arrays(arrays, head["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used (%s): it is made again", path, error)
        return None


def _file_system(path: Path) -> str:
    """Return the kind of file system that a file is on, such as "ext4"; "" where Linux has none."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            own, _, rest = line.partition(" - ")
            if own.split()[2] == number:
                return rest.split()[0]
    return ""


@cache
def _log_network(folder: Path, kind: str) -> None:
    log.warning(
        "%s is on a network (%s), where other machines can remove a file in use: each process has "
        "tables and indices in memory of its own. Pass --data-cache with a folder on a local disk",
        folder, kind,
    )  # fmt: skip


def _is_whole(file: BinaryIO, name: str) -> bool:
    """Compare the digest of a file, without keeping its pages in this process."""
    left = file.seek(0, os.SEEK_END) - _DIGEST
    file.seek(0)
    digest = hashlib.sha256(name.encode() + b"\n")
    while left > 0 and (data := file.read(min(left, _PIECE))):
        digest.update(data)
        left -= len(data)
    return file.read() == digest.digest()
