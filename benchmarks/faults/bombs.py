"""Bytes of hostile files: headers that promise more than there is, and bombs that expand."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable

from cache_tools.spec.canonical import canonical_json, sha256

END = bytes(1024)
"""End of a tar."""
GIB = 2**30


def member(name: str, data: bytes, kind: bytes = b"0", size: bytes = b"", link: str = "") -> bytes:
    """Return a member of a tar; `size` replaces the field of its size, whatever its data."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size:
        head[-512 + 124 : -512 + 136] = size.ljust(12, b"\0")
    head[-512 + 148 : -512 + 156] = b" " * 8
    head[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(head[-512:])
    return bytes(head) + data + bytes(-len(data) % 512)


def number(value: int) -> bytes:
    """Return a size field in base 256, as GNU tar has large and negative ones."""
    return bytes([0x80 if value >= 0 else 0xFF]) + value.to_bytes(11, "big", signed=value < 0)


def pax(key: str, value: str) -> bytes:
    """Return an extended header of one record."""
    size = len(f" {key}={value}\n".encode())
    size += len(str(size + len(str(size))))
    return member("pax", f"{size} {key}={value}\n".encode(), b"x")


def zeros(count: int) -> tuple[bytes, int]:
    """Return `count` zeros as raw deflate, made from one block again and again, and their CRC."""
    piece = bytes(2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(count // len(piece)):
        crc = zlib.crc32(piece, crc)
    return block * (count // len(piece)) + b"\x03\x00", crc


def gz(count: int) -> bytes:
    """Return a gzip file of so many zeros."""
    data, crc = zeros(count)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    return head + data + struct.pack("<II", crc, count & 0xFFFFFFFF)


def zipped(entries: Iterable[tuple[str, bytes]], **fields: int) -> bytes:
    """Return a zip of stored entries; `fields` replace what its directory says of each.

    Args:
        entries: Names and bytes.
        fields: size, packed, method, flags, at (of the header), mode.
    """
    out, directory, count = io.BytesIO(), b"", 0
    for name, data in entries:
        named, crc = name.encode("utf-8", "surrogateescape"), zlib.crc32(data)
        at = fields.get("at", out.tell())
        size, packed = fields.get("size", len(data)), fields.get("packed", len(data))
        both = struct.pack(
            "<HHHHHIIIHH", 20, fields.get("flags", 0), fields.get("method", 0), 0, 33,
            fields.get("crc", crc), packed, size, len(named), 0,
        )  # fmt: skip
        out.write(b"PK\x03\x04" + both + named + data)
        mode = fields.get("mode", 0o100644) << 16
        rest = struct.pack("<HHHII", 0, 0, 0, mode, at)
        directory += b"PK\x01\x02" + struct.pack("<H", 0x0314) + both + rest + named
        count += 1
    at = out.tell()
    end = struct.pack("<HHHHIIH", 0, 0, count % 65536, count % 65536, len(directory), at, 0)
    return out.getvalue() + directory + b"PK\x05\x06" + end


def png(width: int, height: int, data: bytes = b"", bits: int = 8, *more: bytes) -> bytes:
    """Return a PNG with this header and this packed data, with further chunks before it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, 2 if bits == 8 else 0, 0, 0, 0)
    pieces = [chunk(kind[:4], kind[4:]) for kind in more]
    parts = [chunk(b"IHDR", head), *pieces, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed_zeros(count: int) -> bytes:
    """Return zeros as zlib packs them."""
    data, _ = zeros(count)
    adler = (1, count % 65521)
    return b"\x78\xda" + data + struct.pack(">HH", adler[1], adler[0])


def jpeg(width: int, height: int, scans: int = 1, progressive: bool = True) -> bytes:
    """Return a JPEG with a header of these sides, and empty scans."""
    kind = b"\xff\xc2" if progressive else b"\xff\xc0"
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    tables = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    huffman = (
        b"\xff\xc4\x00\x15\x00\x01"
        + bytes(15)
        + b"\x00"
        + b"\xff\xc4\x00\x15\x10\x01"
        + bytes(15)
        + b"\x00"
    )
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + b"\x00" * 4
    return b"\xff\xd8" + tables + kind + frame + huffman + scan * scans + b"\xff\xd9"


def tiff(width: int, height: int, loops: bool = False) -> bytes:
    """Return a TIFF with a header of these sides; its directory may name itself as the next."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8),
            (262, 3, 1, 1), (273, 4, 1, 200), (278, 4, 1, height), (279, 4, 1, 100)]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8 * loops) + bytes(300)


def bmp(width: int, height: int) -> bytes:
    """Return a BMP with a header of these sides."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(64)


def npy(header: str, data: bytes = b"", size: int = -1) -> bytes:
    """Return a file of numpy with this header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text) if size < 0 else size) + text + data


def shaped(shape: str, kind: str = "<f4") -> str:
    """Return numpy's header of an array."""
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def safetensors(header: object, data: bytes = b"", size: int = -1) -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size < 0 else size) + text + data


def sealed(manifest: bytes, place: tuple[str, ...], value: object) -> bytes:
    """Return a cache's zarr.json with another value at a place of the manifest, and its digests."""
    group = json.loads(manifest)
    stated = group["attributes"]["kdcache"]
    holder = stated
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    try:
        stated["fingerprint"] = sha256(canonical_json(stated["spec"]))
        stated.pop("sha256", None)
        stated["sha256"] = sha256(canonical_json(stated))
    except ValueError:  # NaN has no canonical form
        stated["sha256"] = "sha256:0"
    return json.dumps(group).encode()
