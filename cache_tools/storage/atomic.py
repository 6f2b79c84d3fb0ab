"""Atomic, durable file writes: every file of a cache and of a run is written through here."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools import file_contents
from cache_tools.errors import CacheDamaged, KdcacheError, UsageError

log = logging.getLogger("kdcache")
PARTIAL = ".partial"
_OWN = re.compile(
    rf"(?:.+\.(?:[0-9a-f]{{12}}|\d+-\d{{6,}})|(?:packed-)?[0-9a-f]{{64}}\.\d+)\{PARTIAL}", re.DOTALL
)
"""Names of temporary files of this and of earlier versions."""
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)
"""Errors of CIFS, VirtualBox and some FUSE at the fsync of a folder, which they do not have."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
STEPS = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f), or choose another disk.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
"""Next step where neither the path nor its permissions are wrong."""
_STALE_SECONDS = 3600.0
_held = threading.local()
"""Lock files that a thread holds, `identities`: device and inode."""
MAX_JSON = 2**20
"""Bytes of the largest JSON file that is read."""
_FETCH = "Restore it from a copy, or fetch it again from where it came."


def write(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: temporary name, fsync, rename, fsync of the folder.

    Raises:
        KdcacheError: The disk is full or the file cannot be written; nothing is left behind.
    """
    try:
        with temporary(path) as partial:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_unsynced(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, but without fsync: one that can be made or fetched again.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    with temporary(path) as partial:
        partial.write_bytes(data)
        partial.replace(path)


@contextlib.contextmanager
def temporary(path: Path, within: bool = False, folder: bool = False) -> Iterator[Path]:
    """Create an empty file or `folder` beside `path`, or in it; it is removed after the body.

    It is locked meanwhile, so that `sweep` of another process leaves it, however old it is.

    Raises:
        OSError: It cannot be created.
    """
    name = f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}"
    partial = path / name if within else path.with_name(name)
    descriptor = -1
    try:
        _make_folder(partial.parent)
        if folder:
            partial.mkdir()
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(partial, flags | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        with contextlib.suppress(OSError):
            remove(partial)
        if descriptor >= 0:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if there is one.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Append lines to a file, durably; a crash can lose or cut only the last one.

    Raises:
        KdcacheError: The disk is full or the file cannot be written.
    """
    try:
        _make_folder(path.parent)
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
    the lock. A thread that holds it may lock again.
    """
    lock = open_lock(path, folder)
    mine: set[tuple[int, int]] = _held.__dict__.setdefault("identities", set())
    if _identity(lock) in mine:
        os.close(lock)
        yield
        return
    _wait(lock, waiting)
    while not os.fstat(lock).st_nlink:  # its holder has removed it: another is the lock by now
        os.close(lock)
        lock = open_lock(path, folder)
        _wait(lock, waiting)
    mine.add(identity := _identity(lock))
    try:
        yield
    finally:
        mine.remove(identity)
        os.close(lock)


def _identity(lock: int) -> tuple[int, int]:
    return os.fstat(lock).st_dev, os.fstat(lock).st_ino


def _wait(lock: int, waiting: str) -> None:
    """Lock an open file, unless its file system has no locks; it is closed when interrupted."""
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    log.info(waiting)
                fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.close(lock)
        raise


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


def sweep(path: Path) -> int:
    """Remove temporary files of killed processes, an hour old or older, in and beside `path`.

    `path` is what a command writes, a folder or a file. Only names that `temporary` gives are
    removed, and none that a living process holds.

    Returns:
        Their number, which is also logged.
    """
    path, count = Path(os.path.realpath(path)), 0
    found = [*path.parent.glob(f"*{PARTIAL}"), *path.rglob(f"*{PARTIAL}")]
    for partial in found:
        with contextlib.suppress(OSError):
            if is_temporary(partial.name) and is_abandoned(partial):
                remove(partial)
                count += 1
    if count:
        log.info("removed %d temporary files that killed processes left in %s", count, path)
    return count


def is_temporary(name: str) -> bool:
    """Check if a file has the name of one that is being written, or was when a process ended."""
    return _OWN.fullmatch(name) is not None


def requested(path: Path | str) -> str:
    """Name what a command writes by a file or folder that is temporary, or in a temporary folder.

    Other paths are returned unchanged.
    """
    for partial in (Path(path), *Path(path).parents):
        if is_temporary(partial.name):
            name = partial.name.rsplit(".", 2)[0]
            within = partial.parent.name == name
            written = partial.parent if within else partial.with_name(name)
            return str(written / Path(path).relative_to(partial))
    return str(path)


def is_abandoned(partial: Path) -> bool:
    """Check that a file or folder has not changed for an hour, and that no process holds it."""
    if partial.is_symlink() or time.time() - partial.lstat().st_mtime <= _STALE_SECONDS:
        return False
    flags = os.O_RDONLY if partial.is_dir() else os.O_RDWR  # which locks of NFS require
    descriptor = os.open(partial, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: file systems without locks
        return not isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return True


def clear(folder: Path, *kept: str) -> None:
    """Remove what is in a folder, which may be a link or a mount point and stays."""
    for path in folder.iterdir():
        if path.name not in kept:
            remove(path)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object of a cache; CacheDamaged when it is none within `MAX_JSON` bytes."""
    try:
        value = file_contents.parse_json(data, MAX_JSON)
    except ValueError as error:
        raise CacheDamaged(f"{name} cannot be read: {error}. {_FETCH}") from None
    if not isinstance(value, dict):
        raise CacheDamaged(f"{name} is not a JSON object. {_FETCH}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object as `parse_json`, and no more of its file; raises OSError, too."""
    with file_contents.open_plain(path) as file:
        return parse_json(file.read(MAX_JSON + 1), str(path))


def cannot_write(path: Path | str, error: OSError) -> KdcacheError:
    """Return the error for a file that cannot be written, by the name that it was to have."""
    path = requested(path)
    if error.errno in DISK_FULL:
        return KdcacheError(
            f"the disk is full: {path} was not written. What is committed is safe; "
            "make room and run the same command again."
        )
    step = STEPS.get(error.errno or 0, "Check the path and its permissions.")
    return KdcacheError(f"cannot write {path}: {error.strerror}. {step}")
