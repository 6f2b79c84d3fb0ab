"""Headers of a tar, read one after the other within the bytes that are there.

A reader of its own, since `tarfile` believes what a header states: it goes back where a size is
negative, calls itself for each long name, searches pax records in quadratic time and reads sparse
maps past the end of the file. Here a header takes the time and memory of its bytes, and every
size is compared with what is left of the file. Formats: POSIX ustar and pax, GNU, V7.
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_01
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK = 512
_PIECE = 2**20
_MOST_PADDING = 2**30
"""Most bytes after the end marker, which are read: one may be a sparse file of terabytes."""
_MOST_NAMES = 2**20
"""Most bytes of an extended header: long names and pax records of one member."""
_MOST_DIGITS = 20
_OLD_FILE, _FILE, _LINK, _SYMBOLIC, _FOLDER = b"\0", b"\x0007", b"1", b"2", b"5"
_LONG_NAME, _LONG_LINK, _PAX_ALL, _SPARSE = b"L", b"K", b"g", b"S"
_EXTENDED, _OF_GNU, _WITHOUT_CONTENT = b"LKxXg", b"LKS", b"123456"
"""Types whose content is about other members; that use the prefix field for other things; and that
have no content, whatever their size."""
_NAMES = {_LONG_NAME: "path", _LONG_LINK: "linkpath"}
_KEYS = {b"path": "path", b"GNU.sparse.name": "path", b"linkpath": "linkpath", b"size": "size"}
_SPARSE_KEYS = "GNU.sparse"


@dataclass(frozen=True)
class Member:
    """One file in a tar."""

    name: str
    """Path, without "./" in front."""
    offset: int
    """First byte of its content."""
    length: int
    """Bytes of its content."""
    kind: str = ""
    """Kind of a member without content of its own, such as "symbolic link"; "" of a file."""


@dataclass
class _Header:
    """A header, and where it is."""

    at: int
    type: bytes
    name: str
    link: str
    size: int
    is_sparse: bool
    mapped: bool
    """True if blocks of a sparse map follow."""

    @property
    def where(self) -> str:
        return f"the header at byte {self.at:,}"


def members(file: BinaryIO, begin: int, end: int) -> Iterator[Member]:
    """Yield the members of the tar in bytes begin..end of a file, hard links as what they link to.

    Folders are left out.

    Raises:
        ValueError, OSError: It is damaged, cut short, or something follows it.
    """
    known: dict[str, Member] = {}
    at = begin
    while header := _next_header(file, at, end):
        at = header.at + BLOCK
        while header.mapped:
            header.mapped = _read(file, at, BLOCK, f"it is cut short in {header.name}")[504] > 0
            at += BLOCK
        name, offset = header.name.rstrip("/").removeprefix("./"), at
        if header.type not in _WITHOUT_CONTENT or header.is_sparse:
            if header.size > end - at:
                raise ValueError(
                    f"it is cut short in {name}: {header.where} states {header.size:,} bytes, "
                    f"{max(end - at, 0):,} follow"
                )
            at += _padded(header.size)
        if header.type == _FOLDER or (header.type == _OLD_FILE and header.name.endswith("/")):
            continue
        if header.type == _LINK:
            link = header.link.removeprefix("./")
            if (target := known.get(link)) is None:
                raise ValueError(f"{name} is a link to {link}, which it does not hold")
            member = replace(target, name=name)
        elif header.type in _FILE and not header.is_sparse:
            member = Member(name, offset, header.size)
        else:
            kind = "symbolic link" if header.type == _SYMBOLIC else "device"
            member = Member(name, 0, 0, "sparse file" if header.is_sparse else kind)
        known[name] = member
        yield member
    at = file.tell()
    if end - at > _MOST_PADDING:
        raise ValueError(
            f"after its end at byte {at - BLOCK:,} follow {end - at + BLOCK:,} bytes, more than "
            f"the padding of any tar (if they are zeros, cut them off: truncate -s {at + BLOCK} "
            "FILE)"
        )
    while piece := file.read(min(_PIECE, end - file.tell())):
        if piece.strip(b"\0"):
            raise ValueError(
                f"after its end at byte {at - BLOCK:,} follow {end - at + BLOCK:,} bytes, another "
                "tar perhaps, which no reader of tars takes. Keep tars apart, or join them by tar "
                "--concatenate"
            )


def _next_header(file: BinaryIO, at: int, end: int) -> _Header | None:
    """Read the next member's header, with the names before it applied; None at the end marker."""
    records: dict[str, str] = {}
    while block := _header_block(file, at, end):
        header = _parse(block, at)
        if header.type not in _EXTENDED:
            header.name = records.get("path", header.name)
            header.link = records.get("linkpath", header.link)
            header.is_sparse |= _SPARSE_KEYS in records
            if text := records.get("size"):
                if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
                    raise ValueError(f"{header.where} has the size {text[:40]!r}")
                header.size = int(text)
            return header
        at += BLOCK
        if header.size > (most := max(min(_MOST_NAMES, end - at), 0)):
            raise ValueError(
                f"{header.where} is of names of {header.size:,} bytes, at most {most:,} can follow"
            )
        data = _read(file, at, header.size)
        at += _padded(header.size)
        found = {_NAMES[header.type]: _text(data)} if header.type in _NAMES else _pax(data, header)
        if header.type == _PAX_ALL and found:
            raise ValueError(f"{header.where} has the {min(found)} of all members that follow")
        if doubled := records.keys() & found.keys():
            raise ValueError(f"{header.where} has another {doubled.pop()} for the same member")
        records |= found
    if records:
        raise ValueError(f"it ends at byte {at:,} after the names of a member that is not there")
    return None


def _header_block(file: BinaryIO, at: int, end: int) -> bytes:
    """Read the header at a byte; nothing at the end marker."""
    file.seek(min(at, end))
    block = file.read(max(min(BLOCK, end - at), 0))
    if not any(block):
        if len(block) == BLOCK:
            return b""
        raise ValueError(
            f"it has no end marker after byte {at:,}, so it may be cut short (if it is whole, "
            "append the marker: head -c 1024 /dev/zero >> FILE)"
        )
    if len(block) < BLOCK:
        raise ValueError(f"it is cut short in the header at byte {at:,}")
    return block


def _parse(block: bytes, at: int) -> _Header:
    """Parse a header, which has a checksum."""
    total, stored = sum(block) - sum(block[148:156]) + 8 * ord(" "), _octal(block[148:156])
    if stored != total:
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if stored != total - 256 * high:  # of signed bytes, as old writers have it
            raise ValueError(f"what begins at byte {at:,} is no member of a tar")
    type_, name, prefix = block[156:157], _text(block[:100]), _text(block[345:500])
    if prefix and type_ not in _OF_GNU:
        name = f"{prefix}/{name}"
    field = block[124:136]  # octal digits, or after a byte 0x80 of base 256
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None:
        raise ValueError(f"the header at byte {at:,} has the size {field!r}")
    is_sparse = type_ == _SPARSE
    mapped = is_sparse and block[482] > 0
    return _Header(at, type_, name, _text(block[157:257]), size, is_sparse, mapped)


def _octal(field: bytes) -> int | None:
    digits = field.partition(b"\0")[0].strip()
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _pax(data: bytes, header: _Header) -> dict[str, str]:
    """Parse pax records, "LENGTH KEY=VALUE" and a line feed; those of other keys are dropped."""
    found, at = {}, 0
    while at < len(data) and data[at]:
        digits = data[at : at + _MOST_DIGITS].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or at + length > len(data):
            raise ValueError(f"{header.where} is of pax records that are damaged")
        name = _KEYS.get(key, "")
        if name:
            found[name] = value[:-1].decode("utf-8", "surrogateescape")
        if key.startswith(b"GNU.sparse."):
            found[_SPARSE_KEYS] = ""
        at += length
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read(file: BinaryIO, at: int, size: int, short: str = "it is cut short") -> bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise ValueError(short)
    return data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
