"""Contents of files from elsewhere: text with a byte order mark, and files of another kind.

Editors of Windows put a mark in front of text, or write UTF-16. A clone without git-lfs has a few
lines of text in place of each large file, and a failed download a page of HTML: then the bytes
are as they were sent, and to fetch them again the same way is of no use.
"""

import codecs
from pathlib import Path

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
    (b"PAR1", "a Parquet file: write its images to a folder or to tars first"),
    (b"ARROW1", "an Arrow file: write its images to a folder or to tars first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: write its images to a folder or to tars first"),
)
HEAD = 64
"""Bytes that `describe` needs."""


def decode_text(data: bytes, errors: str = "strict") -> str:
    """Decode text, UTF-8 unless it has another byte order mark; lines end in a line feed.

    Raises:
        UnicodeDecodeError: It is no text of its encoding.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """Read a file as `decode_text` decodes it; raises OSError too."""
    return decode_text(path.read_bytes())


def describe(head: bytes, containers: bool = True) -> str:
    """Describe a file of a known other kind by its first bytes, with the next step; else ""."""
    kinds = _PLACEHOLDERS + _CONTAINERS * containers
    starts = (head, head.lstrip().lower())
    return next((text for mark, text in kinds if any(s.startswith(mark) for s in starts)), "")


def describe_file(path: Path) -> str:
    """Describe what is in place of a file, in parentheses after a space; "" if nothing is."""
    try:
        with path.open("rb") as file:
            found = describe(file.read(HEAD), containers=False)
    except OSError:
        return ""
    return f" (it is {found})" if found else ""
