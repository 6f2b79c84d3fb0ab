"""Reader of files of `torch.save` or `joblib.dump`, without torch, joblib or unpickling.

Three containers are supported: the zip of torch 1.6 and later, the four pickles of older ones, and
joblib's, a pickle in one zlib stream. Tensors are outside of the pickle, and are read on request.
"""

import contextlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cache_tools.errors import DataError
from cache_tools.file_contents import describe_file
from cache_tools.importers import safe_pickle
from cache_tools.storage import zips

MAX_FILE = 2**26
"""Bytes of the largest file that is read."""
_MAGIC = 0x1950A86A20F9469CFC6C
_ENTRY, _MOST_MEMBERS = b"PK\x01\x02", 1000
_ZIP, _ZLIB, _PICKLE = b"PK", b"\x78", b"\x80"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"ZF": "joblib before 0.10",
}


def load(path: Path, tensors: bool = False) -> Any:
    """Read the value of a file: numbers, text, lists, tuples, dictionaries, numpy arrays.

    With `tensors`, those of torch 1.6 and later are read, too, as numpy arrays.

    Raises:
        DataError: The file is missing, damaged, too large, or contains anything but data.
    """
    data = _read(path)
    if data.startswith(_ZIP):
        pickle, storages = _members(data, path)
        return safe_pickle.loads(pickle, str(path), 0, storages if tensors else None)[0]
    if data.startswith(_ZLIB):
        return safe_pickle.loads(_inflated(data, path), str(path))[0]
    if data.startswith(_PICKLE):
        return _legacy(data, str(path))
    packed = next((name for head, name in _PACKED.items() if data.startswith(head)), "")
    if packed:
        raise DataError(f"{path} is compressed by {packed}, which is not read. Unpack it first.")
    raise DataError(
        f"{path}{describe_file(path)} is no file of torch.save or joblib (it begins {data[:8]!r})."
    )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path} is missing, or no plain file.")
        if (size := path.stat().st_size) > MAX_FILE:
            raise DataError(f"{path} has {size:,} bytes; at most {MAX_FILE:,} are read.")
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _members(data: bytes, path: Path) -> tuple[bytes, Callable[[str], bytes]]:
    """Read the pickle in torch's zip, and return a reader of its storages by their keys.

    Members must be uncompressed: a bomb cannot unfold.
    """
    if (count := data.count(_ENTRY)) > _MOST_MEMBERS:
        raise DataError(f"{path} is refused: its zip has {count:,} members, torch.save's has few.")

    def read(end: str) -> bytes:
        found = [i for i in archive.infolist() if i.filename.endswith(end)]
        if len(found) != 1:
            raise DataError(f"{path} has {len(found)} members named {end[1:]}, not one.")
        if found[0].compress_type != zipfile.ZIP_STORED or found[0].file_size > MAX_FILE:
            raise DataError(
                f"{path} is refused: its pickle is compressed, or would have "
                f"{found[0].file_size:,} bytes. torch.save does not compress."
            )
        with _refusing(path):
            return archive.read(found[0])

    with _refusing(path):
        archive = zipfile.ZipFile(io.BytesIO(data))
        zips.check(archive, len(data), 1)
    return read("/data.pkl"), lambda key: read(f"/data/{key}")


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Make a DataError of everything that zipfile raises for forged files."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} is a damaged zip and is refused: {error}. Fetch it again."
        ) from None


def _inflated(data: bytes, path: Path) -> bytes:
    stream = zlib.decompressobj()
    try:
        pickle = stream.decompress(data, safe_pickle.MAX_BYTES + 1)
    except zlib.error as error:
        raise DataError(f"{path} is a damaged zlib stream: {error}. Fetch it again.") from None
    if len(pickle) > safe_pickle.MAX_BYTES:
        raise DataError(
            f"{path} is refused: it unpacks to more than {safe_pickle.MAX_BYTES:,} bytes."
        )
    if not stream.eof:
        raise DataError(f"{path} is cut short. Fetch it again.")
    return pickle


def _legacy(data: bytes, name: str) -> Any:
    """Read the fourth pickle of torch before 1.6, after magic number, version and system data."""
    value, at = safe_pickle.loads(data, name)
    if value != _MAGIC:
        return value  # a plain pickle, as joblib writes without compression
    for _ in range(3):
        value, at = safe_pickle.loads(data, name, at)
    return value
