"""Tars that state what cannot be: an error with the byte, in the time and memory of their bytes."""

import gzip
import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import pytest

from cache_tools.data import tar_headers, tar_index
from cache_tools.data.open import open_images
from cache_tools.errors import DataError

END = bytes(1024)
BACK = b"\xff" + (-512).to_bytes(11, "big", signed=True)
FAR = b"\x80" + (2**60).to_bytes(11, "big")


def header(name: str, size: int = 0, kind: bytes = b"0", field: bytes = b"", map: int = 0) -> bytes:
    """One header; `field` stands in place of the size, `map` is the mark of a sparse map."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if field:
        block[124:136] = field
    block[482] |= map
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return member(
        "pax", b"".join(b"%d %s\n" % (len(r) + (4 if len(r) < 96 else 5), r) for r in records), kind
    )


GOOD = member("a.ppm", b"P6 1 1 255\n123") + member("a.cls", b"3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + header("n.ppm", field=BACK) + END, "header at byte 2,048 has the size"),
        (GOOD + header("n.ppm", field=BACK, kind=b"Z") + END, "byte 2,048 has the size"),
        (GOOD + header("n", field=BACK, kind=b"L") + END, "byte 2,048 has the size"),
        (GOOD + header("n.ppm", field=b"-1000000000\0") + END, "byte 2,048 has the size"),
        (GOOD + header("n.ppm", field=FAR) + END, r"cut short in n\.ppm: the header at byte 2,048"),
        (GOOD + header("n", field=FAR, kind=b"x") + END, r"byte 2,048 is of names of 1,152,921"),
        (GOOD + header("n", 2**21, b"K") + bytes(2**22), "at most 1,048,576 can follow"),
        (pax(b"size=-512") + GOOD + END, "header at byte 1,024 has the size '-512'"),
        (pax(b"size=" + b"9" * 90) + GOOD + END, "pax records that are damaged|has the size"),
        (pax(b"size=99999999") + GOOD + END, r"cut short in a\.ppm: .* byte 1,024 states 99,999,"),
        (pax(b"size=1") * 3 + GOOD + END, "byte 1,024 has another size for the same member"),
        (pax(b"size=1", kind=b"g") + GOOD + END, "byte 0 has the size of all members that follow"),
        (member("p", b"1" * 200_000, b"x") + GOOD + END, "byte 0 is of pax records that are dam"),
        (member("p", b"999999 path=x\n", b"x") + GOOD + END, "byte 0 is of pax records that are"),
        (member("p", b"5 a=b=c\n", b"x") + GOOD + END, "byte 0 is of pax records that are"),
        (member("L", b"a\0", b"L") * 20_000 + GOOD + END, "byte 1,024 has another path"),
        (GOOD + member("L", b"a\0", b"L") + END, "ends at byte 3,072 after the names of a member"),
        (GOOD + header("s", 0, b"S", map=1), "cut short in s"),
        (GOOD + header("s.ppm", 0, b"S", map=1) + b"\1" * 512 + END, r"s\.ppm is a sparse file"),
        (pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0") + GOOD + END, "a.ppm is a sparse file"),
        (GOOD + bytes(1000) + GOOD, "after its end at byte 2,048 follow 3,048 bytes"),
        (GOOD + b"x" * 512 + END, "what begins at byte 2,048 is no member of a tar"),
        (GOOD + b"x" * 300, "cut short in the header at byte 2,048"),
        (member("a.ppm", b"x") + member("a.cls", b"9" * 60) + END, r"a\.cls has a class beyond"),
        (member("a.ppm", b"x") + member("a.cls", b"16777216") + END, r"a\.cls has a class beyond"),
        (member("a.ppm", b"x") + member("a.json", b'{"cls": -2}') + END, "json has the class -2"),
    ],
)  # fmt: skip
def test_a_tar_that_states_what_cannot_be(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"shard b\.tar: .*({message}).*Fetch or write it again"):
        tar_index.scan(io.BytesIO(data), "b.tar", checksums=True)


def test_a_tar_with_a_terabyte_of_zeros_after_its_end(tmp_path: Path, patience: None) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(GOOD + END)
    os.truncate(path, 2**40)
    with path.open("rb") as file, pytest.raises(DataError, match="truncate -s 3072 FILE"):
        tar_index.scan(file, "b.tar", checksums=False)
    os.truncate(path, 3072)
    with path.open("rb") as file:
        assert len(tar_index.scan(file, "b.tar", checksums=False).names) == 1


def test_long_names_and_other_records() -> None:
    last = header("b.ppm", 3, b"\0") + b"abc" + bytes(509) + END
    for before, name in (
        (member("L", b"n" * 300 + b".ppm\0", b"L"), "n" * 300 + ".ppm"),
        (pax(b"comment=x", kind=b"g") * 2 + GOOD + pax(b"path=d/\xc3\xbc.ppm"), "d/ü.ppm"),
    ):
        data = before + last
        found = list(tar_headers.members(io.BytesIO(data), 0, len(data)))
        assert (found[-1].name, found[-1].length) == (name, 3)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(layout: int) -> None:
    names = ["a.jpg", "ü\udcff.png", "d/" * 40 + "x.jpg", "./b.cls", "e." + "x" * 90]
    names += ["n" * 300 + ".jpg", "d/" * 200 + "ü.cls"] * (layout != tarfile.USTAR_FORMAT)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as file:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * number, 1.5  # type: ignore[assignment]
            file.addfile(info, io.BytesIO(bytes(info.size)))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as file:
        files = [m for m in file if m.isfile()]
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in files]
    found = tar_headers.members(buffer, 0, len(buffer.getvalue()))
    assert [(m.name, m.offset, m.length) for m in found] == expected


def test_a_label_that_links_repeat_is_read_once() -> None:
    text = json.dumps({"label": 4, "more": "x" * 2**19}).encode()
    link = tarfile.TarInfo("link")
    link.type = tarfile.LNKTYPE
    data = [member("0.ppm", b"x"), member("0.json", text)]
    for i in range(1, 2000):  # each read would be half a megabyte of JSON
        for link.name, link.linkname in ((f"{i}.ppm", "0.ppm"), (f"{i}.json", "0.json")):
            data.append(link.tobuf())
    file = _Counting(b"".join(data) + END)
    index = tar_index.scan(file, "b.tar", checksums=True)
    assert (len(index.names), set(index.label_N.tolist())) == (2000, {4})
    assert file.bytes_read < 2 * len(file.getvalue())


class _Counting(io.BytesIO):
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def test_a_compressed_shard_of_zeros_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(2**27)))
    with pytest.raises(DataError, match=r"a\.tar\.gz unpacks to more than 100 times its size"):
        open_images(str(path), "train")
    assert not [p for p in (tmp_path / "kept").rglob("*") if p.is_file() and p.stat().st_size]
    path.write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(DataError, match=r"1 shards have none, the first is .*a\.tar\.gz"):
        open_images(str(path), "train")


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 2**70}, {"samples": -1}, {"samples": True}, {"samples": 1.0},
        {"tar_bytes": 1e400}, {"tar_bytes": "1"}, {"passed": {"x": "y"}}, {"passed": 3},
        {"kind": []}, {"more": "x" * 2**17},
    ],
)  # fmt: skip
def test_an_index_that_states_what_cannot_be(change: dict[str, object]) -> None:
    data = GOOD + END
    good = tar_index.scan(io.BytesIO(data), "b.tar", checksums=True).pack()
    line, _, body = good[:-4].partition(b"\n")
    for new in (json.dumps(json.loads(line) | change).encode(), b"[" * 10_000, b"[]"):
        forged = new + b"\n" + body
        with pytest.raises(DataError, match=r"b\.tar is no index of a shard"):
            tar_index.unpack(forged + zlib.crc32(forged).to_bytes(4, "little"), "b.tar")
    label = body[16:20]
    forged = line + b"\n" + body.replace(label, (-7).to_bytes(4, "little", signed=True), 1)
    with pytest.raises(DataError, match="do not fit the shard"):
        tar_index.unpack(forged + zlib.crc32(forged).to_bytes(4, "little"), "b.tar")
