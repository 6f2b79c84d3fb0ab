"""`numba.njit`, whose compiled code is kept wherever there is a place for it.

numba keeps it beside the module or in the home folder, and raises where neither can be written: in
a container of another user, in a read-only image, in a module of a cluster. Then it is kept in the
data folder, in the folder for temporary files, or not at all. What is loaded is executed: such a
folder must be of this user alone, and each file has its digest. Functions contain those that they
call and the constants of other modules: they are compiled again when any file of their folder has
changed, or one that the functions there import. numba looks at a function's own file alone.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

from cache_tools.storage.disk_cache import DiskCache

log = logging.getLogger("kdcache")
F = TypeVar("F", bound=Callable[..., Any])
_CacheFile: Any = caching.IndexDataCacheFile
_DIGEST = 32
_IMPORT = re.compile(r"^from (\w+(?:\.\w+)*) import (?:\(([\w\s,]*)\)|([\w ,]+))", re.MULTILINE)


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
        if isinstance(getattr(compiled, "_cache", None), caching.Cache):
            kept: Any = compiled._cache
            kept._cache_file = _SealedFile(kept, Path(function.__code__.co_filename).parent)
            # a full disk is no reason to stop
            kept._guard_against_spurious_io_errors = lambda: contextlib.suppress(OSError)
            kept.load_overload = _logging_misses(kept.load_overload)
        return compiled  # type: ignore[no-any-return]

    return decorate


def _logging_misses(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap numba's search for compiled code: a process logs the first function without any."""

    def wrapped(*arguments: Any) -> Any:
        if (found := load(*arguments)) is None:
            _log_compilation()
        return found

    return wrapped


@cache
def _log_compilation() -> None:
    log.info("compiling the code for images and targets, once on this machine: up to a minute")


class _SealedFile(_CacheFile):  # type: ignore[misc]
    """Compiled code of a function, with a digest in each file: what differs is compiled again."""

    def __init__(self, kept: Any, folder: Path) -> None:
        stamp = kept._impl.locator.get_source_stamp(), _stamp(folder)
        super().__init__(kept.cache_path, f"{kept._impl.filename_base}.sealed", stamp)

    def _load_index(self) -> dict[Any, str]:
        return self._load_data(self._index_name) or {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._save_data(self._index_name, overloads)

    def _load_data(self, name: str) -> Any:
        with contextlib.suppress(OSError):
            found = Path(self._data_path(name)).read_bytes()
            data = found[_DIGEST:]
            if self._digest(name, data) == found[:_DIGEST]:
                return pickle.loads(data)
        return None

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(self._digest(name, dumped) + dumped)

    def _digest(self, name: str, data: bytes) -> bytes:
        """Compute the digest of a file of this name, numba's version and function's source."""
        origin = f"{name}\n{self._version}\n{self._source_stamp}\n"
        return hashlib.sha256(origin.encode() + data).digest()


@cache
def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return names, times and sizes of the source files that compiled code of a folder contains.

    These are the files of the folder, and the modules that those with compiled code import. None
    of them is within an archive.
    """
    root = folder
    while (root / "__init__.py").exists():
        root = root.parent
    files = {path: path.stat() for path in sorted(folder.glob("*.py")) if path.is_file()}
    texts = {path: path.read_text("utf-8") for path in files}
    waiting = [text for text in texts.values() if "import njit" in text]
    while waiting:
        for path in _imported(root, waiting.pop()):
            if path not in texts and path.is_file():
                files[path], texts[path] = path.stat(), path.read_text("utf-8")
                waiting.append(texts[path])
    return tuple(
        (path.relative_to(root).as_posix(), found.st_mtime_ns, found.st_size)
        for path, found in sorted(files.items())
    )


def _imported(root: Path, text: str) -> Iterator[Path]:
    """Return files of the modules that a source imports as such, or constants from."""
    for module, *names in _IMPORT.findall(text):
        path = root.joinpath(*module.split("."))
        for name in (words.split()[0] for words in ",".join(names).split(",") if words.strip()):
            yield path / f"{name}.py"
            if name.isupper():
                yield path.with_suffix(".py")


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
