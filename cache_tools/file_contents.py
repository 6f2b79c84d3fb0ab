"""Contents of files from elsewhere: text with a byte order mark, and files of another kind.

Editors of Windows put a mark in front of text, or write UTF-16. A clone without git-lfs has a few
lines of text in place of each large file, and a failed download a page of HTML: then the bytes
are as they were sent, and to fetch them again the same way is of no use.
"""

import codecs
import errno
import json
import math
import os
import stat
import tomllib
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LFS = b"version https://git-lfs.github.com/spec/"
_PLACEHOLDERS = (
    (LFS, "a git-lfs pointer in place of the file: run git lfs pull in its repository"),
    (b"<!doctype html", "a web page in place of the file: the download failed"),
    (b"<html", "a web page in place of the file: the download failed"),
)
_CONTAINERS = (
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (b"PK\3\4", "a zip: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\7", "a RAR archive: unpack it first"),
    (b"PAR1", "a Parquet file: name it NAME.parquet, which kdcache shard reads"),
    (b"ARROW1", "an Arrow file: name it NAME.arrow, which kdcache shard reads"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: write its images to a folder or to tars first"),
)
HEAD = 64
"""Bytes that `describe` needs."""
MAX_JSON, MAX_TOML = 2**24, 2**16
"""Bytes of the largest JSON and TOML that is parsed: values take some thirty times as many."""
_MAX_DEPTH = 64
"""Levels of tables and lists."""
_MAX_BITS = 128
_TOO_DEEP = f"it is nested more than {_MAX_DEPTH} levels deep"


def decode_text(data: bytes, errors: str = "strict") -> str:
    """Decode text, UTF-8 unless it has another byte order mark; lines end in a line feed.

    Raises:
        UnicodeDecodeError: It is no text of its encoding.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading.

    Raises:
        OSError: It cannot be read, or is a pipe, a device or a folder: these might never end.
    """
    descriptor = _open_at_once(path, os.O_RDONLY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def _open_at_once(path: str | Path, flags: int) -> int:
    """Open a file; of a pipe that no process writes without waiting for one."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def read(path: Path, limit: int = MAX_JSON) -> bytes:
    """Read a file of at most `limit` bytes, or what a shell's <(…) writes; "" of an idle pipe.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger; the caller adds the file's name.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """Read a file as `decode_text` decodes it; raises as `read`."""
    return decode_text(read(path, limit))


def check_safetensors(path: Path) -> None:
    """Check the length of a safetensors file's header, which its library reads whatever it is.

    Raises:
        OSError: It cannot be read.
        ValueError: The header is larger than the file or than MAX_JSON.
    """
    with open_plain(path) as file:
        length, size = int.from_bytes(file.read(8), "little"), file.seek(0, 2)
    if length > (most := max(min(size - 8, MAX_JSON), 0)):
        raise ValueError(f"its header would have {length:,} bytes, at most {most:,} can be read")


def describe(head: bytes, containers: bool = True) -> str:
    """Describe a file of a known other kind by its first bytes, with the next step; else ""."""
    kinds = _PLACEHOLDERS + _CONTAINERS * containers
    starts = (head, head.lstrip().lower())
    return next((text for mark, text in kinds if any(s.startswith(mark) for s in starts)), "")


def describe_file(path: Path) -> str:
    """Describe what is in place of a file, in parentheses after a space; "" if nothing is."""
    try:
        with open_plain(path) as file:
            found = describe(file.read(HEAD), containers=False)
    except OSError:
        return ""
    return f" (it is {found})" if found else ""


def parse_json(data: bytes | str, limit: int = MAX_JSON) -> Any:
    """Parse JSON from outside: at most `limit` bytes, flat enough, finite, without repeated keys.

    Raises:
        ValueError: It is none, or not within these bounds; the caller adds the file's name.
    """
    return _bounded(data, limit, partial(json.loads, object_pairs_hook=_unique_keys))


def parse_toml(text: str, limit: int = MAX_TOML) -> dict[str, Any]:
    """Parse TOML from outside; bounds and errors as of `parse_json`."""
    found: dict[str, Any] = _bounded(text, limit, tomllib.loads)
    return found


def _bounded(data: Any, limit: int, parse: Callable[[Any], Any]) -> Any:
    if len(data) > limit:
        raise ValueError(f"it has {len(data):,} bytes, {limit:,} are the limit")
    try:
        found = parse(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's advice is for programmers
            raise ValueError("it has a number of thousands of digits") from None
        raise
    level = [found]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):  # a lone surrogate cannot be written to any file
                value.encode("utf-8", "surrogateescape")
            elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ValueError(f"it has a number of {value.bit_length()} bits")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"the number {value} is not finite")
        if not inner:
            return found
        level = inner
    raise ValueError(_TOO_DEEP)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse repeated keys: of two equal ones, readers would take one or the other."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value
