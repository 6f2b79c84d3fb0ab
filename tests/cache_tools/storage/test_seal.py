"""Digests of the files of a run: a changed byte is found, a kill at any moment leaves a match."""

import json
import os
from pathlib import Path

import pytest

from cache_tools.errors import CacheDamaged
from cache_tools.storage import atomic, seal


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    seal.write(tmp_path, "result.json", b"{}")
    seal.check(tmp_path, "result.json")
    (tmp_path / "result.json").write_bytes(b"{ ")
    with pytest.raises(CacheDamaged, match=r"result.json is damaged.*--fresh"):
        seal.check(tmp_path, "result.json")


def test_a_kill_between_digest_and_file_leaves_the_former_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal.write(tmp_path, "result.json", b"first")

    def killed(path: Path, data: bytes) -> None:
        if path.name == "result.json":
            raise KeyboardInterrupt
        write(path, data)

    write = atomic.write
    monkeypatch.setattr(atomic, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        seal.write(tmp_path, "result.json", b"second")
    seal.check(tmp_path, "result.json")
    monkeypatch.undo()
    for text in (b"second", b"third", b"fourth"):
        seal.write(tmp_path, "result.json", text)
    (tmp_path / "result.json").write_bytes(b"first")
    with pytest.raises(CacheDamaged):
        seal.check(tmp_path, "result.json")


def test_a_network_is_checked_file_by_file(tmp_path: Path) -> None:
    seal.write(tmp_path, "model/config.json", b"{}")
    seal.write(tmp_path, "model/model.safetensors", b"weights")
    seal.write(tmp_path, "model-ema/model.safetensors", b"others")
    (tmp_path / "model-ema" / "model.safetensors").unlink()
    seal.check_network(tmp_path / "model")
    with pytest.raises(CacheDamaged, match="No such file"):
        seal.check_network(tmp_path / "model-ema")


@pytest.mark.parametrize("name", ["result.json", seal.NAME])
def test_a_pipe_or_a_device_is_refused_without_a_read(
    tmp_path: Path, patience: None, name: str
) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        seal.write(tmp_path, "result.json", b"{}")
        (tmp_path / name).unlink()
        make(tmp_path / name)
        with pytest.raises(OSError, match="it is no plain file"):
            seal.check(tmp_path, "result.json")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("is_old", [False, True])
def test_a_file_of_a_terabyte_of_zeros_is_refused_without_a_read(
    tmp_path: Path, patience: None, is_old: bool
) -> None:
    seal.write(tmp_path, "model.safetensors", b"weights")
    if is_old:  # of an earlier kdcache, whose digests have no sizes
        digests = json.loads((tmp_path / seal.NAME).read_text())
        (tmp_path / seal.NAME).write_text(json.dumps({"sha256": digests["sha256"]}))
    seal.check(tmp_path, "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", 2**40)
    with pytest.raises(CacheDamaged, match=r"its size, 1,099,511,627,776 bytes, differs"):
        seal.check(tmp_path, "model.safetensors")


def test_files_without_digests_are_read_unchecked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    seal.check(tmp_path, "config.json")
    seal.check_network(tmp_path / "model")


@pytest.mark.parametrize(
    "text", ["7", '{"sha256": 7}', '{"sha256": {"a": 7}}', "{", '{"sha256": {}, "bytes": 7}']
)
def test_damaged_digests_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / seal.NAME).write_text(text)
    with pytest.raises(CacheDamaged, match=seal.NAME):
        seal.check(tmp_path, "config.json")


def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    seal.write(tmp_path, "a", b"abc")
    stored = json.loads((tmp_path / seal.NAME).read_text())
    assert stored["sha256"]["a"] == [
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ]
