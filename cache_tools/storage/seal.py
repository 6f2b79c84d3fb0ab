"""Digests of the files of a run: stored when a file is written, compared when it is read.

`digests.json` in the folder of a run or a sweep has the SHA-256 of every file that is written as a
whole, and those of logs as they were at a checkpoint and at the end; and the bytes of each, so that
a file of another size is not read. It is written before the file and keeps the digests of earlier
versions, so that a kill at any moment leaves files that match. A folder without it, of an earlier
kdcache, is read unchecked.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cache_tools import file_contents
from cache_tools.errors import CacheDamaged
from cache_tools.storage import atomic

NAME = "digests.json"
_RESTORE = "Restore it from a copy, or make the run again with --fresh"
_VERSIONS = 3
"""Digests kept of a file: the new one, and those of a checkpoint and of the one before it."""
_MOST_BYTES = 2**36
"""Bytes of a file that is read although those of an earlier kdcache's digest are unknown."""


def write(folder: Path, name: str, data: bytes, note: str = NAME) -> None:
    """Write the file `name` of a run, atomically and durably, and its digest before it to `note`.

    Raises:
        KdcacheError: The disk is full or the file cannot be written.
    """
    add(folder, name, data, note)
    atomic.write(folder / name, data)


def add(folder: Path, name: str, data: bytes, note: str = NAME) -> None:
    """Store the digest of what is about to be written to the file `name`."""
    (digests, sizes), new = _digests(folder, note), hashlib.sha256(data).hexdigest()
    earlier = [digest for digest in digests.get(name, []) if digest != new]
    digests[name] = [*earlier, new][-_VERSIONS:]
    sizes[new] = len(data)
    kept = {one: sizes[one] for of_file in digests.values() for one in of_file if one in sizes}
    found = {"sha256": digests, "bytes": kept}
    atomic.write(folder / note, (json.dumps(found, indent=2) + "\n").encode())


def lists(folder: Path, name: str, data: bytes | None = None) -> bool:
    """Return True if the file `name` has a digest, or, with `data`, if the newest one is of that.

    Raises:
        CacheDamaged: digests.json is damaged.
    """
    digests = _digests(folder)[0].get(name, [])
    return bool(digests) and (data is None or hashlib.sha256(data).hexdigest() == digests[-1])


def check(folder: Path, name: str, stored_as: str = "", note: str = NAME) -> None:
    """Compare the file `name` with the digests of it, or of the file that was `stored_as`.

    Raises:
        CacheDamaged: It has changed since it was written, or digests.json is damaged.
    """
    digests, sizes = _digests(folder, note)
    if (expected := digests.get(stored_as or name)) is None:
        return
    found, written = "", [sizes.get(digest) for digest in expected]
    try:
        with file_contents.open_plain(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            if size in written or (None in written and size <= _MOST_BYTES):
                found = hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise
    except OSError as error:
        raise CacheDamaged(
            f"{folder / name} cannot be read: {error.strerror}. {_RESTORE}."
        ) from None
    if found not in expected:
        raise CacheDamaged(
            f"{folder / name} is damaged: its {'SHA-256' if found else f'size, {size:,} bytes,'} "
            f"differs from the one in {folder / note}. {_RESTORE}; "
            "if you have edited it yourself, remove its entry there."
        )


def check_network(folder: Path) -> None:
    """Compare the files of a network in a run, such as RUN/model, with their digests.

    Raises:
        CacheDamaged: One has changed since it was written, or is missing.
    """
    folder = folder.resolve()
    check_all(folder.parent, f"{folder.name}/")


def check_all(folder: Path, *beginnings: str) -> None:
    """Compare the files of a run whose names begin so with their digests; raises as `check`."""
    for name in _digests(folder)[0]:
        if name.startswith(beginnings):
            check(folder, name)


def _digests(folder: Path, note: str = NAME) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Read the digests of each file, and the bytes of what has a digest, unless unknown."""
    path = folder / note
    found: Any = {"sha256": {}}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = atomic.read_json(path)
    digests, sizes = found.get("sha256"), found.get("bytes", {})
    if (
        isinstance(digests, dict)
        and isinstance(sizes, dict)
        and all(isinstance(of_file, list) for of_file in digests.values())
        and all(isinstance(one, str) for of_file in digests.values() for one in of_file)
    ):
        return digests, sizes
    raise CacheDamaged(f"{path} is damaged. Remove it to read the files beside it unchecked.")
