"""Hostile folders: links, pipes, devices and folders where files should be, and huge JSON."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.errors import KdcacheError
from cache_tools.storage import atomic
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.end_to_end.attacks import attacker
from tests.end_to_end.attacks.attacker import CODE, PART

Refused = Callable[..., str]
METADATA = "targets/code/zarr.json"
NAMES = ["zarr.json", METADATA, "samples/key/zarr.json", "samples/label/c/0", "samples/id/c/0",
         PART.record, CODE]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_link_to_a_file_outside(forged: Path, refused: Refused, name: str) -> None:
    """Even to the very bytes that should lie there: what lies outside may be somebody's secret."""
    outside = forged.parent / "outside"
    (forged / name).rename(outside)
    (forged / name).symlink_to(outside)
    assert "leads out" in refused(forged, name)


@pytest.mark.parametrize("name", ["targets", "targets/code/c", "samples/key", "commits/v0001"])
def test_a_link_to_a_folder_outside(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).rename(forged.parent / "outside")
    (forged / name).symlink_to(forged.parent / "outside", target_is_directory=True)
    assert "leads out" in refused(forged, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_leads_to_itself(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).unlink()
    (forged / name).symlink_to(forged / name)
    refused(forged, "forged.zarr")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_place_of_a_file(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).unlink()
    (forged / name).mkdir()
    _claim_nothing(forged, (forged / name).stat().st_size)
    refused(forged, name if name != "zarr.json" else "forged.zarr")


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_place_of_a_file(forged: Path, refused: Refused, name: str) -> None:
    """Who opens it waits until somebody writes: for ever."""
    (forged / name).unlink()
    os.mkfifo(forged / name)
    _claim_nothing(forged, 0)
    refused(forged, name if name != "zarr.json" else "forged.zarr")


@pytest.mark.parametrize("name", NAMES)
def test_a_device_in_place_of_a_file(forged: Path, refused: Refused, name: str) -> None:
    """As /dev/zero, which never ends."""
    (forged / name).unlink()
    try:
        os.mknod(forged / name, 0o20666, os.makedev(1, 5))
        (forged / name).open("rb").close()
    except PermissionError:
        pytest.skip("devices can be made by root alone, where they are allowed")
    _claim_nothing(forged, 0)
    refused(forged, name if name != "zarr.json" else "forged.zarr")


def _claim_nothing(cache: Path, size: int) -> None:
    """Let the record say that the chunk has as many bytes as stat says of what is no file."""
    if (cache / CODE).is_file() or not (cache / PART.record).is_file():
        return

    def change(record: attacker.Json) -> None:
        record["chunks"][CODE].update(bytes=size, sha256=attacker.sha256(b""))
        attacker.reseal(record)

    attacker.edit(cache / PART.record, change)


def test_a_file_where_a_folder_should_be(forged: Path, refused: Refused) -> None:
    (forged / "targets/code/c").rename(forged.parent / "outside")
    (forged / "targets/code/c").write_text("no folder")
    refused(forged, CODE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_be_read(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).chmod(0)
    refused(forged, name)


def test_writing_follows_no_link_out_of_the_cache(forged: Path) -> None:
    """Whoever repairs a stranger's cache writes into it, and nowhere else."""
    outside = forged.parent / "outside"
    (forged / "targets/code/c/1").rename(outside)
    (forged / "targets/code/c/1").symlink_to(outside, target_is_directory=True)
    before = sorted(outside.iterdir())
    store = Cache.open(forged)
    stored, probes = store.read(Part(0, 0))
    (outside / "0").unlink()
    (outside / "0").mkdir()
    with pytest.raises(KdcacheError, match="leads out"):
        store.write(PART, stored, probes, {}, {})
    assert sorted(outside.iterdir()) == before


def test_locking_empties_no_file_that_a_link_names(forged: Path) -> None:
    """The lock lies beside the cache, where a stranger's archive may have put a link."""
    precious = forged.parent / "precious"
    precious.write_text("years of work")
    forged.with_name("forged.zarr.lock").symlink_to(precious)
    store = Cache.open(forged)
    stored, probes = store.read(PART)
    (forged / PART.record).unlink()
    with contextlib.suppress(KdcacheError):
        store.write(PART, stored, probes, {}, {})
    assert precious.read_text() == "years of work"


def test_a_note_of_the_source_that_is_no_text(forged: Path) -> None:
    forged.with_name("forged.zarr.source").write_bytes(b"\xff\xfe\0")
    with contextlib.suppress(KdcacheError):
        assert isinstance(Cache.open(forged).source, str)


def test_sweeping_survives_links_and_removes_nothing_outside(forged: Path) -> None:
    outside = forged.parent / "outside"
    outside.mkdir()
    (outside / "old.0123456789ab.partial").write_text("not ours")
    os.utime(outside / "old.0123456789ab.partial", (0, 0))
    (forged / "dangling.0123456789ab.partial").symlink_to(forged / "nothing")
    (forged / "folder.0123456789ab.partial").symlink_to(outside, target_is_directory=True)
    (forged / "deep").symlink_to(outside, target_is_directory=True)
    atomic.sweep(forged)
    assert (outside / "old.0123456789ab.partial").read_text() == "not ours"


def _replaced(cache: Path, name: str, data: bytes) -> None:
    (cache / name).write_bytes(data)
    if name not in ("zarr.json", PART.record):
        attacker.seal(cache)


JSONS = ["zarr.json", METADATA, "samples/key/zarr.json", PART.record]


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"zarr_format": NaN}',
        b'{"zarr_format": 1e400}',
        b'{"zarr_format": -Infinity}',
        b'{"a": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda data: data[:12].decode("latin1"),
)
def test_json_that_is_none(forged: Path, refused: Refused, name: str, data: bytes) -> None:
    _replaced(forged, name, data)
    refused(forged, name)


@pytest.mark.parametrize("name", JSONS)
def test_json_of_a_gigabyte(forged: Path, refused: Refused, name: str) -> None:
    """A sparse file: it costs its sender nothing."""
    with (forged / name).open("wb") as file:
        file.truncate(2**30)
    assert "larger than" in refused(forged, name)


@pytest.mark.parametrize("name", [METADATA, "samples/key/zarr.json"])
def test_json_of_a_hundred_million_lists(forged: Path, refused: Refused, name: str) -> None:
    _replaced(forged, name, b'{"a":[' + b"[]," * 2**25 + b"[]]}")
    refused(forged, name)


@pytest.mark.parametrize("key", ["kdcache", "spec", "num_views", "sha256"])
def test_a_key_that_stands_twice_in_the_manifest(forged: Path, refused: Refused, key: str) -> None:
    text = (forged / "zarr.json").read_text()
    value = json.loads(text)["attributes"]["kdcache"]
    found = json.dumps(value if key == "kdcache" else value[key])
    (forged / "zarr.json").write_text(text.replace(f'"{key}":', f'"{key}":{found},"{key}":', 1))
    assert "twice" in refused(forged, "zarr.json")


@pytest.mark.parametrize("key", ["view", "chunks", "sha256"])
def test_a_key_that_stands_twice_in_a_record(forged: Path, refused: Refused, key: str) -> None:
    text = (forged / PART.record).read_text()
    found = json.dumps(json.loads(text)[key])
    twice = text.replace(f'"{key}":', f'"{key}": {found}, "{key}":', 1)
    (forged / PART.record).write_text(twice)
    assert "twice" in refused(forged, PART.record)
