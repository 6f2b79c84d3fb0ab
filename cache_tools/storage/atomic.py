"""Atomic, durable file writes: every file of a cache and of a run is written through here."""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheDamaged, KdcacheError, UsageError

log = logging.getLogger("kdcache")
PARTIAL = ".partial"
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)
"""Answers of CIFS, VirtualBox and some FUSE to the fsync of a folder, which they do not have."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_STALE_SECONDS = 3600.0
MAX_JSON = 2**20
"""Bytes of the largest JSON file that is read."""


def write(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename, fsync of the folder.

    Raises:
        KdcacheError: The disk is full or the file cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        _make_folder(path.parent)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from None


def write_unsynced(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, but without fsync: one that can be made or fetched again.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def append(path: Path, data: bytes) -> None:
    """Append lines to a file, durably; a crash can lose or cut only the last one.

    Raises:
        KdcacheError: The disk is full or the file cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durably: a synced file in a lost folder is lost."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a loss of power, where its file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def open_lock(path: Path, folder: Path | None = None) -> int:
    """Open a lock file for `flock`, created with the mode that the umask allows.

    One of another user that cannot be written is opened for reading, which suffices for a lock.
    `folder` is opened in its place where no file can be created, as beside a folder of one's own in
    that of others.

    Raises:
        KdcacheError: It is a link, or cannot be created.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        for other in (path, folder):
            if other is not None and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                with contextlib.suppress(OSError):
                    return os.open(other, os.O_RDONLY | flags)
        if error.errno == errno.ELOOP:
            raise KdcacheError(f"cannot lock {path}: it is a link. Remove it.") from None
        raise cannot_write(path, error) from None


@contextlib.contextmanager
def locked(path: Path, waiting: str = "", folder: Path | None = None) -> Iterator[None]:
    """Hold a file lock, which the kernel drops with its holder; none where files have no locks.

    The file is created and stays, as `open_lock`. `waiting` is logged while another process holds
    the lock.
    """
    lock = open_lock(path, folder)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    log.info(waiting)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which names its holder, or refuse; no lock where files have none.

    Raises:
        UsageError: Another process holds it; `what` it works on is in the message.
    """
    lock = open_lock(path)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 300, 0).decode(errors="replace").strip()
                raise UsageError(
                    f"{what} is in use by another process ({holder or 'unnamed'}). Wait for its "
                    "end or stop it, and run the same command again; or choose another --out."
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def sweep(folder: Path) -> int:
    """Remove partial files, an hour old or older, in and beside `folder`; return their number."""
    folder = Path(os.path.realpath(folder))
    beside = folder.parent.glob(f"{glob.escape(folder.name)}.*{PARTIAL}")
    stale = [
        path
        for path in [*folder.rglob(f"*{PARTIAL}"), *beside]
        if time.time() - path.lstat().st_mtime > _STALE_SECONDS
    ]
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stale)


def clear(folder: Path, *kept: str) -> None:
    """Remove what is in a folder, which may be a link or a mount point and stays."""
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object of a cache; CacheDamaged when it is none, has NaN or a repeated key."""
    try:
        value = json.loads(
            data,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError) as error:
        raise CacheDamaged(f"{name} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CacheDamaged(f"{name} is not a JSON object.")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated keys: of two equal ones, readers would take one or the other."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def _finite_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def cannot_write(path: Path, error: OSError) -> KdcacheError:
    """Return the error for a file that cannot be written."""
    if error.errno in DISK_FULL:
        return KdcacheError(
            f"the disk is full: {path} was not written. What is committed is safe; "
            "make room and run the same command again."
        )
    return KdcacheError(
        f"cannot write {path}: {error.strerror}. Check the path and its permissions."
    )
