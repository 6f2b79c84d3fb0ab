"""Errors of the system and of libraries about a file, as one paragraph: file, reason, next step.

Any command can meet them anywhere: a full disk, a permission, a failing device, a stale handle of a
network file system. What writes a file through a library wraps it in `writing`, so that the file is
named; `explained` does for all others, at the edge of a command and of a process.
"""

import contextlib
import errno
import io
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from cache_tools.errors import KdcacheError
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.storage import atomic

_LIBRARIES = ("SafetensorError", "BadZipFile", "UnidentifiedImageError")
"""Errors of libraries about a file, by name: they are not imported for it."""
_AGAIN = "Correct that and run the same command again; KDCACHE_DEBUG=1 shows where it happened."


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file or folder `path` in every error of a library that writes it in the body.

    Raises:
        KdcacheError: The disk is full or the file cannot be written.
    """
    try:
        yield
    except KdcacheError:
        raise
    except Exception as error:
        if (known := explained(error, path)) is None:
            raise
        raise known from None


def explained(error: BaseException, path: Path | None = None) -> KdcacheError | None:
    """Return an error with the file (`path`, if known), reason and next step.

    None of what is no error of the system: a fault of ours.
    """
    if isinstance(error, KdcacheError):
        return error
    if is_out_of_memory(error):
        return KdcacheError(
            f"there is not enough memory: {_line(error) or type(error).__name__}. Pass "
            "a smaller batch_size or fewer threads, or close other programs, and run the same "
            "command again."
        )
    names = {kind.__name__ for kind in type(error).__mro__}
    full = os.strerror(errno.ENOSPC) in str(error)  # libraries that have no errno
    if not (isinstance(error, (OSError, UnicodeError, EOFError)) or names & {*_LIBRARIES} or full):
        return None
    where = atomic.requested(path or _file_of(error) or "a file or standard output")
    number = getattr(error, "errno", None)
    if full or number in atomic.DISK_FULL:
        return atomic.cannot_write(where, OSError(number or errno.ENOSPC, ""))
    if isinstance(error, UnicodeError):
        return KdcacheError(f"a text is not UTF-8 ({where}): {_line(error)}. {_AGAIN}")
    reason = getattr(error, "strerror", None) or _line(error) or "it ends too early"
    named = (step for code, step in atomic.STEPS.items() if os.strerror(code) in reason)
    step = next(named, "Check the path, its permissions and the disk.")
    return KdcacheError(f"cannot read or write {where}: {reason}. {step} {_AGAIN}")


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _file_of(error: BaseException) -> str | Path | None:
    """Return the file of an error: its own, else the nearest caller's open one or path."""
    if isinstance(name := getattr(error, "filename", None), (str, bytes, os.PathLike)):
        return os.fsdecode(name)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        values = [*frame.f_locals.values()]
        for value in values:
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str):
                return name
        if found := next((value for value in values if isinstance(value, Path)), None):
            return found
    return None
