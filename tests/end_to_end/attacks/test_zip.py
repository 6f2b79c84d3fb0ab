"""Hostile zips: bombs, strange names, secrets, and headers that lie."""

import io
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.end_to_end.attacks.attacker import CODE, PART
from tests.end_to_end.attacks.victim import Outcome, Victim

Refused = Callable[..., str]
Harmless = Callable[[Path], None]
MEGABYTE = b"\0" * 2**20


@pytest.fixture
def members(untouched: Path) -> dict[str, bytes]:
    """The files of the honest cache."""
    found = (p for p in sorted(untouched.rglob("*")) if p.is_file())
    return {str(p.relative_to(untouched)): p.read_bytes() for p in found}


def _zip(
    path: Path, members: dict[str, bytes], prefix: str = "", kind: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, data in members.items():
            out.writestr(zipfile.ZipInfo(prefix + name), data, kind)
    return path


@cache
def _bomb(kind: int, megabytes: int) -> bytes:
    """A compressed stream of zeros, as a zip holds it."""
    out, info = io.BytesIO(), zipfile.ZipInfo("x")
    info.compress_type = kind
    with zipfile.ZipFile(out, "w") as file, file.open(info, "w") as member:
        for _ in range(megabytes):
            member.write(MEGABYTE)
    return out.getvalue()[31 : 31 + info.compress_size]


def _with_bomb(
    path: Path, members: dict[str, bytes], name: str, kind: int, megabytes: int, claim: int
) -> Path:
    """A zip in which one member expands to many megabytes of zeros, and claims to be so large."""
    _zip(path, {**members, name: _bomb(kind, megabytes)}, kind=zipfile.ZIP_STORED)
    assert path.stat().st_size < 2**22
    _patched(path, name, 24, struct.pack("<I", claim), 22)
    return _patched(path, name, 10, struct.pack("<H", kind), 8)


def _patched(path: Path, name: str, at: int, data: bytes, local: int) -> Path:
    """Overwrite bytes of a member's central (and local) header, counted from its signature."""
    raw = bytearray(path.read_bytes())
    for signature, size, offset in ((b"PK\1\2", 46, at), (b"PK\3\4", 30, local)):
        begin = raw.find(signature)
        while raw[begin + size : begin + size + len(name)] != name.encode():
            begin = raw.index(signature, begin + 1)
        raw[begin + offset : begin + offset + len(data)] = data
    path.write_bytes(raw)
    return path


def test_an_honest_zip_is_read(
    tmp_path: Path, members: dict[str, bytes], victim: Victim, truth: Outcome
) -> None:
    outcome = victim.open(_zip(tmp_path / "c.zip", members))
    assert (outcome.targets, outcome.refusals, outcome.escaped) == (truth.targets, {}, {})


@pytest.mark.parametrize("name", ["zarr.json", "targets/code/zarr.json", PART.record, CODE])
@pytest.mark.parametrize("claim", [1100 * 2**20, 900])
def test_a_bomb_of_deflate(
    tmp_path: Path, members: dict[str, bytes], refused: Refused, name: str, claim: int
) -> None:
    refused(_with_bomb(tmp_path / "c.zip", members, name, zipfile.ZIP_DEFLATED, 1100, claim), name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["zarr.json", PART.record, "samples/key/zarr.json"])
def test_a_bomb_that_is_expanded_at_once(
    tmp_path: Path, members: dict[str, bytes], refused: Refused, name: str, kind: int
) -> None:
    """zipfile expands bzip2 and LZMA at once, whatever size the header names."""
    refused(_with_bomb(tmp_path / "c.zip", members, name, kind, 700, 900), name)


@pytest.mark.parametrize("prefix", ["/", "/srv/cache/", "../", "../../x/", "C:/", "//host/x/"])
def test_absolute_names_touch_nothing(
    tmp_path: Path, members: dict[str, bytes], harmless: Harmless, prefix: str
) -> None:
    """Names are looked up in the zip and never on the disk."""
    harmless(_zip(tmp_path / "c.zip", members, prefix))
    assert [p.name for p in tmp_path.iterdir()] == ["c.zip"]


def test_a_zip_of_absolute_names_alone(
    tmp_path: Path, members: dict[str, bytes], refused: Refused
) -> None:
    refused(_zip(tmp_path / "c.zip", members, "/srv/cache/"), "c.zip")


def test_a_link_in_a_zip_is_the_text_of_its_path(
    tmp_path: Path, members: dict[str, bytes], refused: Refused
) -> None:
    path = _zip(tmp_path / "c.zip", {n: d for n, d in members.items() if n != "zarr.json"})
    link = zipfile.ZipInfo("zarr.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as out:
        out.writestr(link, "/etc/passwd")
    refused(path, "zarr.json")


@pytest.mark.parametrize("name", ["zarr.json", "samples/label/c/0", PART.record, CODE])
def test_an_encrypted_member(
    tmp_path: Path, members: dict[str, bytes], refused: Refused, name: str
) -> None:
    path = _zip(tmp_path / "c.zip", members)
    assert "encrypted" in refused(_patched(path, name, 8, b"\1\0", 6), name)


@pytest.mark.parametrize("method", [1, 6, 9, 93, 95, 99, 0xFFFF])
def test_an_unknown_compression(
    tmp_path: Path, members: dict[str, bytes], refused: Refused, method: int
) -> None:
    path = _zip(tmp_path / "c.zip", members)
    refused(_patched(path, CODE, 10, struct.pack("<H", method), 8), CODE)


@pytest.mark.parametrize("name", ["zarr.json", "samples/label/c/0", PART.record, CODE])
def test_a_member_whose_stream_is_rubbish(
    tmp_path: Path, members: dict[str, bytes], refused: Refused, name: str
) -> None:
    path = _zip(tmp_path / "c.zip", members)
    with zipfile.ZipFile(path) as found:
        info = found.getinfo(name)
    raw = bytearray(path.read_bytes())
    begin = info.header_offset + 30 + len(name)
    raw[begin : begin + info.compress_size] = b"\xff" * info.compress_size
    path.write_bytes(raw)
    refused(path, name)


def test_a_version_that_zipfile_cannot_read(
    tmp_path: Path, members: dict[str, bytes], refused: Refused
) -> None:
    path = _zip(tmp_path / "c.zip", members)
    refused(_patched(path, "zarr.json", 6, struct.pack("<H", 255), 4), "c.zip")


@pytest.mark.parametrize("data", [b"", b"PK\5\6", b"PK\5\6" + b"\xff" * 18, b"no zip at all"])
def test_no_zip(tmp_path: Path, refused: Refused, data: bytes) -> None:
    (tmp_path / "c.zip").write_bytes(data)
    refused(tmp_path / "c.zip", "c.zip")


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_of_headers(
    tmp_path: Path, members: dict[str, bytes], harmless: Harmless, seed: int
) -> None:
    """20 zips each: bytes of the headers, where the zip's own checksums do not look."""
    random_ = random.Random(seed)
    whole = _zip(tmp_path / "whole.zip", members, kind=zipfile.ZIP_STORED).read_bytes()
    directory = whole.index(b"PK\1\2")
    for _ in range(20):
        raw = bytearray(whole)
        for _ in range(random_.randint(1, 3)):
            raw[random_.randrange(directory, len(raw))] = random_.randrange(256)
        (tmp_path / "c.zip").write_bytes(raw)
        harmless(tmp_path / "c.zip")
