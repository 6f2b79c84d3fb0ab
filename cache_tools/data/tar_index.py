"""Index of one WebDataset shard, a tar, made by one pass over its headers.

An index is small (some 40 bytes a sample) and can be kept: beside the shard (`NAME.tar.kdx`, which
`kdcache shard` writes) or in the local data folder. One that was made from the whole file also
holds a CRC-32 of every image and of the headers and labels in front of it, so that wrong bytes
from a network are found, and an index that is older than its shard.

Shapes: N samples of the shard.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache_tools import file_contents
from cache_tools.data import tar_headers, tar_samples
from cache_tools.errors import DataError, UsageError
from cache_tools.numerics.text_column import TextColumn
from cache_tools.spec.dataset import NO_LABEL

SUFFIX = ".kdx"
"""Suffix of a shard's name for the index beside it."""
_KIND, _MAGIC = "kdcache shard index ", "kdcache shard index 2"
_BLOCK, _MOST_LEAD, _MOST_HEAD = 512, 8192, 2**16


@dataclass(frozen=True)
class TarIndex:
    """The N samples of one shard, in its order."""

    tar_bytes: int
    """Size of the shard."""
    names: Sequence[str]
    """[N] path of each sample within the data set, without extension."""
    offset_N: NDArray[np.int64]
    """First byte of its image."""
    length_N: NDArray[np.int64]
    """Bytes of its image."""
    label_N: NDArray[np.int32]
    """Class, or NO_LABEL."""
    lead_N: NDArray[np.int64]
    """Bytes in front of its image, headers and label, that the CRC-32 is of, too."""
    crc_N: NDArray[np.uint32] | None = None
    """CRC-32 of these bytes and the image; None when only the headers were read."""
    passed: dict[str, int] = field(default_factory=dict)
    """Members that are neither image nor label: number by extension."""

    def pack(self) -> bytes:
        """Encode the index: one line of JSON, the columns, the names, a CRC-32 of it all."""
        head = {
            "kind": _MAGIC,
            "tar_bytes": self.tar_bytes,
            "samples": len(self.names),
            "crc": self.crc_N is not None,
            "passed": self.passed,
        }
        columns = [self.offset_N.astype("<i8"), self.length_N.astype("<i8")]
        columns += [self.label_N.astype("<i4"), self.lead_N.astype("<i4")]
        if self.crc_N is not None:
            columns.append(self.crc_N.astype("<u4"))
        names = "\n".join(self.names).encode("utf-8", "surrogateescape")
        data = json.dumps(head).encode() + b"\n" + b"".join(c.tobytes() for c in columns) + names
        return data + zlib.crc32(data).to_bytes(4, "little")


def unpack(data: bytes, name: str) -> TarIndex | None:
    """Decode an index; None if another version of this program wrote it.

    Raises:
        DataError: It is none, or incomplete; `name` is the shard's.
    """
    try:
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ValueError("its checksum differs")
        line, _, body = data[:-4].partition(b"\n")
        if len(line) > _MOST_HEAD:
            raise ValueError(f"its first line has {len(line):,} bytes")
        head = file_contents.parse_json(line)
        if head["kind"] != _MAGIC:
            if str(head["kind"]).startswith(_KIND):
                return None
            raise ValueError(f"it is of the kind {head['kind']!r}")
        return _columns(head, head["samples"], body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{name} is no index of a shard ({error}). Remove it.") from None


def _columns(head: dict[str, Any], count: int, body: bytes) -> TarIndex:
    tar_bytes, has_crc, passed = head["tar_bytes"], bool(head["crc"]), dict(head["passed"])
    if {type(n) for n in (count, tar_bytes, *passed.values())} != {int} or not (
        0 <= count <= len(body) // 24 and 0 <= tar_bytes < 2**63
    ):
        raise ValueError("its first line has numbers that cannot be")
    offset = np.frombuffer(body, "<i8", count)
    length = np.frombuffer(body, "<i8", count, 8 * count)
    label = np.frombuffer(body, "<i4", count, 16 * count)
    lead = np.frombuffer(body, "<i4", count, 20 * count).astype(np.int64)
    crc = np.frombuffer(body, "<u4", count, 24 * count) if has_crc else None
    lines = body[(28 if has_crc else 24) * count :]
    names = TextColumn.of_lines(lines) if count else TextColumn.of([])
    wrong = (lead < 0) | (offset < lead) | (length < 0) | (offset > tar_bytes - length)
    wrong |= label < NO_LABEL
    if len(names) != count or np.any(wrong):
        raise ValueError("its samples do not fit the shard")
    return TarIndex(tar_bytes, names, offset, length, label, lead, crc, passed)


def largest(tar_bytes: int) -> int:
    """Return the most bytes that the index of a shard of this size may have.

    A sample has a header of 512 bytes in the shard, and its name, which the index repeats.
    """
    return tar_bytes + 2 * _MOST_HEAD


def scan(file: BinaryIO, name: str, checksums: bool) -> TarIndex:
    """Read the headers of a shard called `name`; with `checksums` the images, for their CRC-32.

    Raises:
        DataError: The tar is broken, ends before its end, or could be read in two ways.
        UsageError: It holds tars instead of images.
    """
    try:
        if (size := file.seek(0, 2)) == 0:
            raise ValueError("it is an empty file")
        found = list(tar_headers.members(file, 0, size))
        tars = sum(member.name.endswith(".tar") for member in found)
        if tars == len(found) > 0:
            raise UsageError(
                f"{name} holds {tars:,} tars, as ILSVRC's training tar does, not images. Write "
                f"shards of it first: kdcache shard {name} FOLDER"
            )
        samples, passed = tar_samples.samples(found)
        once = {s.label and s.label.offset: s.label for s in samples}  # links may repeat one
        labels = {at: tar_samples.label(file, member) for at, member in once.items()}
        label_N = np.array([labels[s.label and s.label.offset] for s in samples], dtype=np.int32)
        rows = np.array([(s.image.offset, s.image.length) for s in samples], dtype=np.int64)
        offset_N, length_N = rows.reshape(-1, 2).T.copy()
        lead_N = _leads(offset_N, length_N)
        crc_N = _checksums(file, offset_N, length_N, lead_N) if checksums else None
    except (OSError, ValueError) as error:
        if isinstance(error, (DataError, UsageError)):
            raise
        file.seek(0)
        reason = file_contents.describe(file.read(file_contents.HEAD))
        raise DataError(
            f"cannot read the shard {name}: it is {reason}."
            if reason
            else f"cannot read the shard {name}: {error}. Fetch or write it again."
        ) from None
    names = [sample.name for sample in samples]
    return TarIndex(size, names, offset_N, length_N, label_N, lead_N, crc_N, dict(passed))


def is_padded(file: BinaryIO, index: TarIndex) -> bool:
    """Check that zeros follow each image of a shard to the end of its block."""
    for end in (index.offset_N + index.length_N).tolist():
        file.seek(end)
        if file.read(-end % _BLOCK).strip(b"\0"):
            return False
    return True


def _leads(offset_N: NDArray[np.int64], length_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes between each image and the one before it, which contain its label as a rule."""
    at_U, last_U = np.unique(offset_N, return_index=True)
    ends = np.concatenate([[0], (at_U + length_N[last_U] + _BLOCK - 1) // _BLOCK * _BLOCK])
    lead_U = np.clip(at_U - ends[:-1], 0, _MOST_LEAD)
    return np.asarray(lead_U[np.searchsorted(at_U, offset_N)])


def _checksums(file: BinaryIO, *columns: NDArray[np.int64]) -> NDArray[np.uint32]:
    rows = [*zip(*(column.tolist() for column in columns), strict=True)]
    crc = {}  # what links repeat is read once
    for offset, length, lead in dict.fromkeys(rows):
        file.seek(offset - lead)
        crc[offset, length, lead] = zlib.crc32(file.read(lead + length))
    return np.array([crc[row] for row in rows], dtype=np.uint32)
