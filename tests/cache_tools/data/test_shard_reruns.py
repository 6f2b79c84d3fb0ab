"""`kdcache shard` run again: it goes on, writes again what has changed, and leaves the rest."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.data import tar_index
from cache_tools.data.open import open_images
from tests.helpers.outcome import Outcome
from tests.helpers.synsets import contents, jpeg, shards, tar_of

Command = Callable[..., Outcome]
KILLED = """
import os, signal, sys
from cache_tools.cli import main as cli
from cache_tools.storage import atomic as files

kind, left, write = sys.argv.pop(1), 3, files.write

def killed(path, data):
    global left
    left -= path.suffix == kind
    if left:
        return write(path, data)
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # before it has its name
    write(path, data)

files.write = killed
sys.argv[0] = "kdcache"
cli.main()
"""
"""`kdcache shard` that dies while it writes its third file of a kind."""


def test_a_killed_run_goes_on_and_its_shards_are_whole(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    for number in range(25, 400):
        (photos / "n01440764" / f"more_{number}.jpg").write_bytes(jpeg(number, 200, 300))
    args = (str(photos), str(tmp_path / "killed"), "--shard-size", "20", "--short-side", "64")
    command = [sys.executable, "-c", KILLED]
    for written in (".tar", ".kdx", ".tar", ".kdx"):
        killed = subprocess.run([*command, written, "shard", *args], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        for path in tmp_path.glob("killed/*.tar"):
            with path.open("rb") as file:
                assert len(tar_index.scan(file, "", checksums=False).names) == 20
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("killed/*.kdx")}
    assert 3 < len(before) < 20
    assert kdcache("shard", *args).code == 0
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    undisturbed = tmp_path / "undisturbed"
    assert kdcache("shard", photos, undisturbed, *args[2:]).code == 0
    killed = {n: d for n, d in shards(tmp_path / "killed").items() if ".partial" not in n}
    assert killed == shards(undisturbed)


@pytest.mark.parametrize("what", ["image", "label", "header", "padding", "index"])
def test_a_shard_that_has_changed_is_written_again(
    photos: Path, tmp_path: Path, kdcache: Command, what: str
) -> None:
    out = tmp_path / "s"
    kdcache("shard", photos, out, "--shard-size", 10)
    before = shards(out)
    index = tar_index.unpack((out / "train-0001.tar.kdx").read_bytes(), "")
    assert index is not None
    begin, end = int(index.offset_N[3]), int(index.offset_N[3] + index.length_N[3])
    at = {"image": begin + 9, "label": begin - 1024, "header": begin - 400, "padding": end}
    path = out / ("train-0001.tar.kdx" if what == "index" else "train-0001.tar")
    data = bytearray(path.read_bytes())
    data[at.get(what, 99)] ^= 1
    path.write_bytes(data)
    assert kdcache("shard", photos, out, "--shard-size", 10).code == 0
    assert shards(out) == before


def test_a_finished_folder_is_left_alone_and_another_is_refused(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "s"
    first = kdcache("shard", photos, out, "--shard-size", 10)
    times = {p: p.stat().st_mtime_ns for p in out.glob("train*")}
    assert kdcache("shard", photos, out, "--shard-size", 10).out == first.out
    assert times == {p: p.stat().st_mtime_ns for p in out.glob("train*")}
    said = kdcache("shard", photos, out, "--shard-size", 9)
    assert (said.code, "shard_size 10, not 9" in said.err) == (2, True)
    (photos / "n01440764" / "new.jpg").write_bytes(jpeg(99))
    said = kdcache("shard", photos, out, "--shard-size", 10)
    assert (said.code, "samples 25, not 26" in said.err) == (2, True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "train-0000.tar").write_bytes(b"mine")
    assert kdcache("shard", photos, foreign).code == 2
    assert [p.name for p in foreign.iterdir()] == ["train-0000.tar"]


def test_broken_images_are_named(photos: Path, tmp_path: Path, kdcache: Command) -> None:
    bad = photos / "n01440764" / "n01440764_2.JPEG"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    (photos / "n02100735" / "text.jpg").write_text("no image")
    said = kdcache("shard", photos, tmp_path / "s", "--shard-size", 4)
    assert said.code == 1
    assert "2 of 26 images" in said.err
    assert "'n01440764/n01440764_2'" in said.err
    assert "'n02100735/text'" in said.err
    assert 4 <= len(list((tmp_path / "s").glob("*.tar"))) < 7
    assert not (tmp_path / "s" / "_info.json").exists()
    said = kdcache("shard", photos, tmp_path / "s", "--shard-size", 4, "--skip-broken", "--json")
    facts = json.loads(said.out)["train"]
    assert facts["left_out"] == ["n01440764/n01440764_2", "n02100735/text"]
    assert len(open_images(str(tmp_path / "s"), "train")) == facts["samples"] == 24
    # repaired: only shards that lack it are written again
    bad.write_bytes(whole)
    (photos / "n02100735" / "text.jpg").write_bytes(jpeg(77))
    assert kdcache("shard", photos, tmp_path / "s", "--shard-size", 4).code == 0
    made = open_images(str(tmp_path / "s"), "train")
    assert contents(made) == contents(open_images(str(photos), "train"))


@pytest.mark.parametrize("options", [(), ("--short-side", 32)])
def test_pictures_that_are_repaired_or_replaced_are_written_again(
    options: tuple[object, ...], photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    out, bad = tmp_path / "s", photos / "n01440764" / "n01440764_2.JPEG"
    bad.write_bytes(bad.read_bytes()[:100])
    command = ("--shard-size", 4, *options, "--skip-broken", "--json")

    def changed() -> tuple[list[str], list[str]]:
        """Pictures left out, and shards that are written, by one run."""
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        said = kdcache("shard", photos, out, *command)
        assert said.code == 0, said.err
        after = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        rewritten = [path.name for path in sorted(after) if after[path] != before.get(path)]
        return json.loads(said.out)["train"]["left_out"], rewritten

    def as_anew() -> bool:
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        assert kdcache("shard", photos, fresh, *command).code == 0
        return shards(fresh) == shards(out)

    assert changed() == (["n01440764/n01440764_2"], [f"train-{i:04d}.tar" for i in range(7)])
    assert changed() == (["n01440764/n01440764_2"], [])
    bad.write_bytes(jpeg(2))
    left_out, repaired = changed()
    assert (left_out, len(repaired)) == ([], 1)
    assert as_anew()
    bad.write_bytes(jpeg(777))
    assert changed() == ([], repaired)
    assert as_anew()
    bad.write_bytes(of_equal_size(bad.read_bytes()))
    assert changed() == ([], repaired)
    assert as_anew()
    assert changed() == ([], [])


def test_shrunk_shards_of_an_older_version_are_made_again_once(
    photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    command = ("shard", photos, tmp_path / "s", "--shard-size", 10, "--short-side", 32)
    assert kdcache(*command).code == 0
    note = tmp_path / "s" / "_shards-train.json"
    text = note.read_text()
    note.write_text(text.replace('"sources"', '"source_sizes"'))
    picture = photos / "n01440764" / "n01440764_2.JPEG"
    picture.write_bytes(jpeg(777))
    said = kdcache(*command)
    assert "3 shards again: files of the source have changed" in said.err
    fresh = tmp_path / "fresh"
    assert kdcache("shard", photos, fresh, *command[3:]).code == 0
    assert shards(fresh) == shards(tmp_path / "s")
    assert "again" not in kdcache(*command).err


def of_equal_size(data: bytes) -> bytes:
    """Return another JPEG of as many bytes, of the same pixels."""
    begin = data.index(b"JFIF\0") + 7
    return data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]


@pytest.mark.parametrize("kind", ["folder", "tar", "copy"])
def test_pictures_of_equal_size_are_noticed_in_every_source(
    kind: str, photos: Path, tmp_path: Path, kdcache: Command
) -> None:
    out, name = tmp_path / "s", "n01440764/n01440764_2"
    pictures = {str(p.relative_to(photos)): p.read_bytes() for p in sorted(photos.rglob("*.JPEG"))}
    source = {"folder": photos, "tar": tmp_path / "a.tar", "copy": tmp_path / "a.tar.gz"}[kind]

    def shard() -> bytes:
        if kind == "folder":
            (photos / f"{name}.JPEG").write_bytes(pictures[f"{name}.JPEG"])
        else:
            data = tar_of(pictures)
            source.write_bytes(gzip.compress(data) if kind == "copy" else data)
        options = ("--no-check", "--beton", "--shard-size", 25)
        assert kdcache("shard", source, out, *options).code == 0
        in_tar, in_container = (
            contents(open_images(str(out), "train", containers=c))[name][0] for c in (False, True)
        )
        assert in_tar == in_container
        return in_tar

    first = shard()
    pictures[f"{name}.JPEG"] = of_equal_size(pictures[f"{name}.JPEG"])
    assert shard() == pictures[f"{name}.JPEG"] != first
