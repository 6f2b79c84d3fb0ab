"""Index of one WebDataset shard, a tar, made by one pass over its headers.

An index is small (some 40 bytes a sample) and can be kept: beside the shard (`NAME.tar.kdx`, which
`kdcache shard` writes) or in the local data folder. One that was made from the whole file also
holds a CRC-32 of every image, so that wrong bytes from a network are found.

Shapes: N samples of the shard.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DataError, UsageError
from cache_tools.spec.dataset import NO_LABEL

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SUFFIX = ".kdx"
"""Suffix of a shard's name for the index beside it."""
_MAGIC = "kdcache shard index 1"
_BLOCK = 512


@dataclass(frozen=True)
class TarIndex:
    """The N samples of one shard, in its order."""

    tar_bytes: int
    """Size of the shard."""
    names: list[str]
    """[N] path of each sample within the data set, without extension."""
    offset_N: NDArray[np.int64]
    """First byte of its image."""
    length_N: NDArray[np.int64]
    """Bytes of its image."""
    label_N: NDArray[np.int32]
    """Class, or NO_LABEL."""
    crc_N: NDArray[np.uint32] | None = None
    """CRC-32 of its bytes; None when only the headers were read."""

    def pack(self) -> bytes:
        """Encode the index: one line of JSON, the columns, the names, a CRC-32 of it all."""
        head = {
            "kind": _MAGIC,
            "tar_bytes": self.tar_bytes,
            "samples": len(self.names),
            "crc": self.crc_N is not None,
        }
        columns = [self.offset_N.astype("<i8"), self.length_N.astype("<i8")]
        columns.append(self.label_N.astype("<i4"))
        if self.crc_N is not None:
            columns.append(self.crc_N.astype("<u4"))
        names = "\n".join(self.names).encode("utf-8", "surrogateescape")
        data = json.dumps(head).encode() + b"\n" + b"".join(c.tobytes() for c in columns) + names
        return data + zlib.crc32(data).to_bytes(4, "little")


def unpack(data: bytes, name: str) -> TarIndex:
    """Decode an index.

    Raises:
        DataError: It is none, or incomplete; `name` is the shard's.
    """
    try:
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ValueError("its checksum differs")
        line, _, body = data[:-4].partition(b"\n")
        head = json.loads(line)
        if head["kind"] != _MAGIC:
            raise ValueError(f"it is of the kind {head['kind']!r}")
        return _columns(head["samples"], head["tar_bytes"], bool(head["crc"]), body)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} is no index of a shard ({error}). Remove it.") from None


def _columns(count: int, tar_bytes: int, has_crc: bool, body: bytes) -> TarIndex:
    offset = np.frombuffer(body, "<i8", count)
    length = np.frombuffer(body, "<i8", count, 8 * count)
    label = np.frombuffer(body, "<i4", count, 16 * count)
    crc = np.frombuffer(body, "<u4", count, 20 * count) if has_crc else None
    text = body[(24 if has_crc else 20) * count :].decode("utf-8", "surrogateescape")
    names = text.split("\n") if count else []
    if len(names) != count or np.any((offset < 0) | (length < 0) | (offset > tar_bytes - length)):
        raise ValueError("its samples do not fit the shard")
    return TarIndex(tar_bytes, names, offset, length, label, crc)


def scan(file: BinaryIO, name: str, checksums: bool) -> TarIndex:
    """Read the headers of a shard called `name`; with `checksums` the images, for their CRC-32.

    Raises:
        DataError: The tar is broken, or ends before its end.
        UsageError: It holds tars instead of images.
    """
    image: dict[str, tuple[int, int, int]] = {}
    label: dict[str, int] = {}
    try:
        for sample, extension, offset, length in _members(file, name):
            if extension in IMAGES:
                file.seek(offset)
                image[sample] = offset, length, zlib.crc32(file.read(length)) if checksums else 0
            elif extension == ".cls":
                file.seek(offset)
                label[sample] = int(file.read(min(length, 32)))
        size = file.seek(0, 2)
    except (OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, (DataError, UsageError)):
            raise
        raise DataError(
            f"cannot read the shard {name}: {error}. Fetch or write it again."
        ) from None
    rows = np.array(list(image.values()), dtype=np.int64).reshape(-1, 3)
    labels = np.array([label.get(n, NO_LABEL) for n in image], dtype=np.int32)
    crc = rows[:, 2].astype(np.uint32) if checksums else None
    return TarIndex(size, list(image), rows[:, 0].copy(), rows[:, 1].copy(), labels, crc)


def _members(file: BinaryIO, name: str) -> Iterator[tuple[str, str, int, int]]:
    """Sample, extension, offset and length of each file in a tar, in its order."""
    tars = others = 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            sample, extension = split_name(member.name)
            tars, others = tars + (extension == ".tar"), others + (extension != ".tar")
            yield sample, extension, member.offset_data, member.size
        end = tar.offset
    if tars and not others:
        raise UsageError(
            f"{name} holds {tars:,} tars, as ILSVRC's training tar does, not images. Write shards "
            f"of it first: kdcache shard {name} FOLDER"
        )
    file.seek(end)
    if any(file.read(_BLOCK)):  # tarfile takes a broken header for the end
        raise ValueError(f"what begins at byte {end:,} is no member of a tar")


def split_name(member: str) -> tuple[str, str]:
    """Split a member's name into its sample and its last extension in small letters."""
    folder, _, file = member.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, "." + extension.lower().rpartition(".")[2]
