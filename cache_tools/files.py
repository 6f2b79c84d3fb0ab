"""Files that are whole or not there: every file of a cache and of a run is written through here."""

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheDamaged, KdcacheError

PARTIAL = ".partial"
_STALE_SECONDS = 3600.0
_MAX_JSON = 2**24


def write(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename, fsync of the folder.

    Raises:
        KdcacheError: The disk is full or the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove what killed processes left in and beside `folder` an hour ago or more; how many."""
    beside = folder.parent.glob(f"{folder.name}.*{PARTIAL}")
    stale = [
        path
        for path in [*folder.rglob(f"*{PARTIAL}"), *beside]
        if time.time() - path.stat().st_mtime > _STALE_SECONDS
    ]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stale)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a cache, bounded in size; CacheDamaged when it is none."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON} bytes")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CacheDamaged(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CacheDamaged(f"{path} is not a JSON object.")
    return value


def _cannot_write(path: Path, error: OSError) -> KdcacheError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KdcacheError(
            f"the disk is full: {path} was not written. What is committed is safe; "
            "make room and run the same command again."
        )
    return KdcacheError(
        f"cannot write {path}: {error.strerror}. Check the path and its permissions."
    )
