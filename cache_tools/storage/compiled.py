"""`numba.njit`, whose compiled code is kept wherever there is a place for it.

numba keeps it beside the module or in the home folder, and raises where neither can be written: in
a container of another user, in a read-only image, in a module of a cluster. Then it is kept in the
data folder, in the folder for temporary files, or not at all. What is loaded is executed: such a
folder must be of this user alone.
"""

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

from cache_tools.storage.disk_cache import DiskCache

log = logging.getLogger("kdcache")
F = TypeVar("F", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[F], F]:
    """Return numba's decorator with these options, `cache=True` among them if possible."""

    def decorate(function: F) -> F:
        try:
            compiled = numba.njit(**options)(function)
        except RuntimeError:  # "cannot cache function …: no locator available"
            folder = _folder()
            if folder is not None:
                os.environ["NUMBA_CACHE_DIR"] = str(folder)  # for processes that this one starts
                setattr(numba.config, "CACHE_DIR", str(folder))  # noqa: B010 - set at run time
            compiled = numba.njit(**{**options, "cache": folder is not None})(function)
        if hasattr(compiled, "_cache"):  # a full disk is no reason to stop, nor a damaged file
            compiled._cache._guard_against_spurious_io_errors = _forgiving
        return compiled  # type: ignore[no-any-return]

    return decorate


def _forgiving() -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(OSError, EOFError)


@cache
def _folder() -> Path | None:
    """Create a folder of this user alone for compiled code; None when nothing can be written."""
    name = f"numba-{os.getuid()}"
    for folder in (DiskCache().path / name, Path(tempfile.gettempdir()) / f"kdcache-{name}"):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            alone = found.st_uid == os.getuid() and not found.st_mode & 0o077
            if stat.S_ISDIR(found.st_mode) and alone and os.access(folder, os.W_OK):
                log.info(
                    "compiled code is kept in %s: numba's own places cannot be written", folder
                )
                return folder
    log.info("compiled code is not kept: no folder for it can be written (set NUMBA_CACHE_DIR)")
    return None
