"""Samples of tars by WebDataset's rules: what could be read in two ways is an error, no guess."""

import io
import logging
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_tools.data import ilsvrc
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import DataError, UsageError
from tests.helpers.outcome import Outcome
from tests.helpers.range_server import serve

Command = Callable[..., Outcome]
Members = list[tuple[str, bytes]]
PPM = b"P6 1 1 255\n"


def picture(number: int) -> bytes:
    """The smallest picture, another for each number."""
    return PPM + bytes([number, 0, 0])


def tar(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pairs(count: int, label: int = 0) -> Members:
    both = [((f"{i}.cls", b"%d" % (i + label)), (f"{i}.ppm", picture(i))) for i in range(count)]
    return [member for pair in both for member in pair]


def contents(images: ImageDataset) -> dict[str, tuple[int, int]]:
    """The number of the picture and the label of each sample."""
    return {n: (images.read(i)[-3], int(images.label_N[i])) for i, n in enumerate(images.names)}


@pytest.fixture(params=["local", "remote"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], ImageDataset]]:
    """Open a tar at its path, or behind a URL."""
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    if request.param == "local":
        yield lambda path: open_images(str(path), "train")
        return
    with serve(tmp_path) as server:
        yield lambda path: open_images(f"{server.url}/{path.relative_to(tmp_path)}", "train")


@pytest.mark.parametrize(
    ("members", "found"),
    [
        # a mask, a depth map and a thumbnail beside the picture, before and after it
        ([("a.depth.png", b"x"), ("a.ppm", picture(1)), ("a.seg.ppm", b"y")], {"a": (1, -1)}),
        ([("a.seg.ppm", picture(4))], {"a": (4, -1)}),  # the only one
        ([("d/a.PPM", picture(2)), ("./d/a.CLS", b" 7\n")], {"d/a": (2, 7)}),
        (
            [("d.e/a.ppm", picture(2)), ("d.f/a.ppm", picture(3))],
            {"d.e/a": (2, -1), "d.f/a": (3, -1)},
        ),
        # names with dots, each with its own label
        (
            [(f"i.v{k}.{e}", d) for k in range(3) for e, d in (("ppm", picture(k)), ("cls", b"5"))],
            {f"i.v{k}": (k, 5) for k in range(3)},
        ),
        # labels in JSON, unless there is a .cls
        ([("a.ppm", picture(0)), ("a.json", b'{"text": "x", "label": 3}')], {"a": (0, 3)}),
        ([("a.json", b'{"label": 3}'), ("a.cls", b"4"), ("a.ppm", picture(0))], {"a": (0, 4)}),
        ([("a.ppm", picture(0)), ("a.json", b'{"label": "cat", "cls": true}')], {"a": (0, -1)}),
        # files of Macs and others without a key
        (
            [("._a.ppm", b"x"), ("a.ppm", picture(1)), (".DS_Store", b""), ("README", b"")],
            {"a": (1, -1)},
        ),
    ],
)
def test_the_picture_and_the_label_of_a_sample(
    opened: Callable[[Path], ImageDataset],
    tmp_path: Path,
    members: Members,
    found: dict[str, tuple[int, int]],
) -> None:
    assert contents(opened(tar(tmp_path / "a.tar", members))) == found


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*pairs(3), ("1.ppm", picture(9))], r"1\.ppm is in it twice"),
        ([*pairs(3), ("1.cls", b"2")], r"1\.cls is in it twice"),
        ([("a.jpg", b""), ("a.png", b"")], r"a has 2 pictures, a\.jpg and a\.png"),
        ([("a.left.jpg", b""), ("a.right.jpg", b""), ("a.cls", b"1")], "a has 2 pictures"),
        ([("a.ppm", b""), ("a.x.cls", b"1"), ("a.y.cls", b"2")], "a has 2 labels"),
        (
            [("a.ppm", b""), ("a.cls", b"n01440764")],
            r"a\.cls contains 'n01440764', no class number",
        ),
        ([("a.ppm", b""), ("a.cls", b"-2")], r"a\.cls has the class -2"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(
    opened: Callable[[Path], ImageDataset], tmp_path: Path, members: Members, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(tar(tmp_path / "a.tar", members))


def test_members_passed_over_are_counted(
    opened: Callable[[Path], ImageDataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [*pairs(2), ("0.txt", b"x"), ("1.txt", b"y"), ("._0.ppm", b"z"), ("5.cls", b"1")]
    path = tar(tmp_path / "a.tar", members)
    caplog.set_level(logging.INFO, "kdcache")
    for _ in range(2):  # from the headers, and from the index that is kept
        caplog.clear()
        assert len(opened(path)) == 2
        assert "passed over: 2 .txt, 1 ._*, 1 .cls" in caplog.text


def test_hard_links_are_pictures_and_symbolic_ones_are_refused(
    opened: Callable[[Path], ImageDataset], tmp_path: Path
) -> None:
    path = tar(tmp_path / "a.tar", pairs(2))
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("./2.ppm")
        link.type, link.linkname = tarfile.LNKTYPE, "./1.ppm"
        file.addfile(link)
    assert contents(opened(path)) == {"0": (0, 0), "1": (1, 1), "2": (1, -1)}
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("3.ppm")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere.ppm"
        file.addfile(link)
    with pytest.raises(DataError, match=r"3\.ppm is a symbolic link.*--dereference"):
        opened(path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda data: data[: 4 * 1024], "no end marker after byte 4,096"),  # between members
        (lambda data: data[: 4 * 1024 + 700], "cannot read the shard"),
        (lambda data: data + data, "after its end at byte 6,144 follow 14,336 bytes"),
        (lambda data: data + b"x", "after its end"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid s",
            "git lfs pull",
        ),
        (lambda data: b"PK\3\4" + data, "it is a zip: unpack"),
        (lambda data: b"\n<!DOCTYPE html><html>404", "web page"),
        (lambda data: b"", "empty file"),
    ],
)
def test_a_tar_that_is_short_or_long_is_refused(
    opened: Callable[[Path], ImageDataset],
    tmp_path: Path,
    cut: Callable[[bytes], bytes],
    message: str,
) -> None:
    path = tar(tmp_path / "a.tar", pairs(3))
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        opened(path)


def test_a_tar_without_padding_is_whole(
    opened: Callable[[Path], ImageDataset], tmp_path: Path
) -> None:
    path = tar(tmp_path / "a.tar", pairs(3))
    path.write_bytes(path.read_bytes()[: 3 * 2048 + 512])
    assert len(opened(path)) == 3


def test_ilsvrcs_tars_follow_the_same_rules(tmp_path: Path) -> None:
    inner = tar(tmp_path / "n1.tar", [*pairs(2), ("._0.ppm", b"")]).read_bytes()
    both = [("n1.tar", inner), ("n2.tar", inner), ("README", b"")]
    images = ilsvrc.train(tar(tmp_path / "both.tar", both))
    assert contents(images) == {"n1/0": (0, 0), "n1/1": (1, 0), "n2/0": (0, 1), "n2/1": (1, 1)}
    twice = tar(tmp_path / "n3.tar", [*pairs(2), ("0.ppm", b"")]).read_bytes()
    for broken, message in ((inner[: 4 * 1024], "n3.*no end marker"), (twice, r"0\.ppm.*twice")):
        with pytest.raises(DataError, match=message):
            ilsvrc.train(tar(tmp_path / "both.tar", [("n1.tar", inner), ("n3.tar", broken)]))


@pytest.mark.parametrize("remote", [False, True])
def test_compressed_shards(
    tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch, kdcache: Command
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    for i, name in enumerate(("0.tar.gz", "1.tgz", "2.tar")):
        members = [(f"{i}-{n}", data) for n, data in pairs(3)]
        tar(tmp_path / "data" / name, members, "w" if i == 2 else "w:gz")
    expected = {f"{i}-{k}": (k, k) for i in range(3) for k in range(3)}
    with serve(tmp_path) as server:
        names = "{0.tar.gz,1.tgz,2.tar}"
        source = f"{server.url}/data/{names}" if remote else str(tmp_path / "data")
        for _ in range(2):
            assert contents(open_images(source, "train")) == expected
        copies = sorted((tmp_path / "kept/shards").iterdir())
        whole = {path: path.read_bytes() for path in copies}
        indices = sorted(p for p in (tmp_path / "kept/index").rglob("*") if p.is_file())
        copies[0].write_bytes(b"")
        copies[1].write_bytes(whole[copies[1]][:1000])
        indices[0].write_bytes(indices[1].read_bytes())
        assert contents(open_images(source, "train")) == expected
        assert {path: path.read_bytes() for path in copies} == whole
        offset = whole[copies[0]].index(b"ustar") + 1030  # in the image behind the first header
        flipped = bytearray(whole[copies[0]])
        flipped[flipped.index(b"\x89PNG") + 9 if b"\x89PNG" in flipped else offset] ^= 1
        copies[0].write_bytes(flipped)
        with pytest.raises(DataError, match="is damaged and was removed"):
            contents(open_images(source, "train"))
        assert contents(open_images(source, "train")) == expected
        assert kdcache("shard", source, tmp_path / "plain").code == 0
    assert contents(open_images(str(tmp_path / "plain"), "train")) == expected
    half = (tmp_path / "data" / "0.tar.gz").read_bytes()[:-20]
    (tmp_path / "data" / "0.tar.gz").write_bytes(half)
    with pytest.raises(DataError, match=r"cannot unpack .*0\.tar\.gz"):
        open_images(str(tmp_path / "data"), "train")
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "100")
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "small"))
    with pytest.raises(UsageError, match="no room for the unpacked shards"):
        open_images(str(tmp_path / "data"), "train")


def test_keys_that_begin_anew_in_each_shard(tmp_path: Path, kdcache: Command) -> None:
    for i in range(2):
        tar(tmp_path / "data" / f"part-{i}.tar", pairs(2, label=i))
    refused = kdcache("shard", tmp_path / "data", tmp_path / "s")
    assert (refused.code, "--key shard/key" in refused.err) == (1, True)
    assert kdcache("shard", tmp_path / "data", tmp_path / "s", "--key", "shard/key").code == 0
    assert contents(open_images(str(tmp_path / "s"), "train")) == {
        f"part-{i}/{k}": (k, k + i) for i in range(2) for k in range(2)
    }


def relabel(path: Path, label: int, date: float = 0) -> None:
    """Write a shard of the same names, pictures and size with other labels."""
    with tarfile.open(path) as file:
        found = [(m.name, file.extractfile(m).read()) for m in file]  # type: ignore[union-attr]
    new = [(n, b"%d" % label if n.endswith(".cls") else data) for n, data in found]
    tar(path.with_name("new"), new)
    os.utime(path.with_name("new"), (date, date))
    path.with_name("new").replace(path)


def labels(source: object) -> set[int]:
    return set(open_images(str(source), "train").label_N.tolist())


def test_a_shard_relabelled_with_its_size_and_date_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    path = tar(tmp_path / "a.tar", pairs(3))
    os.utime(path, (0, 0))
    assert labels(path) == {0, 1, 2}
    relabel(path, 9)
    assert labels(path) == {9}


def test_an_index_older_than_its_shard_is_not_used(
    tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    tar(tmp_path / "a.tar", pairs(3))
    assert kdcache("shard", tmp_path / "a.tar", tmp_path / "s").code == 0
    shard = tmp_path / "s" / "train-0000.tar"
    assert labels(tmp_path / "s") == {0, 1, 2}
    relabel(shard, 9)  # older by its date, younger by that of its inode
    assert labels(tmp_path / "s") == {9}


def test_old_labels_in_an_index_behind_a_url_are_found_by_the_first_read(
    tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    tar(tmp_path / "a.tar", pairs(3))
    assert kdcache("shard", tmp_path / "a.tar", tmp_path / "s").code == 0
    relabel(tmp_path / "s" / "train-0000.tar", 9)
    with serve(tmp_path) as server:
        images = open_images(f"{server.url}/s", "train")
        with pytest.raises(DataError, match="not those of its index"):
            images.read(0)


def test_an_index_of_the_first_version_is_made_anew(
    tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    tar(tmp_path / "a.tar", pairs(3))
    arguments = ("shard", tmp_path / "a.tar", tmp_path / "s")
    assert kdcache(*arguments).code == 0
    index = tmp_path / "s" / "train-0000.tar.kdx"
    current = index.read_bytes()
    index.write_bytes(first_version(current))
    assert labels(tmp_path / "s") == {0, 1, 2}
    with serve(tmp_path) as server:
        images = open_images(f"{server.url}/s", "train")
        assert contents(images) == {str(i): (i, i) for i in range(3)}
    shard = (tmp_path / "s" / "train-0000.tar").read_bytes()
    assert kdcache(*arguments).code == 0
    assert index.read_bytes() == current
    assert (tmp_path / "s" / "train-0000.tar").read_bytes() == shard


def first_version(data: bytes) -> bytes:
    """The beginning of an index as release 0.1 wrote it, with a right checksum."""
    old = data[:-4].replace(b"shard index 2", b"shard index 1")
    return old + zlib.crc32(old).to_bytes(4, "little")


def test_a_container_beside_changed_files_is_not_used(
    tmp_path: Path, kdcache: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in "ab":
        for i in range(2):
            file = tmp_path / "data" / folder / f"{folder}{i}.ppm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(i))
    data = tmp_path / "data"
    assert kdcache("beton", data, data / "train.beton").code == 0
    assert type(open_images(str(data), "train")).__name__ == "Beton"
    (data / "a" / "a0.ppm").rename(data / "b" / "a0.ppm")
    images = open_images(str(data), "train")
    assert dict(zip(images.names, images.label_N.tolist(), strict=True))["b/a0"] == 1
    assert "train.beton is not used: 2 images" in capfd.readouterr().err
    assert len(open_images(str(data / "train.beton"), "train")) == 4  # named, it is what it is
