"""Shards behind a URL: the same samples as from a disk, whatever the network does."""

import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cache_tools.data import readahead, shard_writer
from cache_tools.data.file_pool import FilePool
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import has_split, open_images
from cache_tools.errors import DataError, UsageError
from cache_tools.storage import bounded_http, disk_cache, fsspec_client
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from tests.helpers.range_server import RangeServer, serve
from tests.helpers.synsets import contents

Command = Callable[..., Outcome]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local data folder."""
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(fsspec_client, "FIRST_PAUSE", 0.001)
    return tmp_path / "kept"


@pytest.fixture
def server(digits: Path, tmp_path: Path, kept: Path) -> Iterator[RangeServer]:
    """The digits as plain shards (no index beside them) below /plain, as ours below /ours."""
    root = tmp_path / "served"
    shutil.copytree(digits, root / "plain", ignore=shutil.ignore_patterns("teacher-model"))
    for split in ("train", "validation"):
        images = open_images(str(digits), split)
        shard_writer.write(images, root / "ours", shard_writer.Options(split, shard_size=40))
    with serve(root) as running:
        yield running


PLACES = [
    "ours",
    "plain",
    "plain/digits-train-0000.tar",
    "plai{n..n}/digits-train-{0000..0000}.tar",
]


@pytest.mark.parametrize("data", PLACES)
def test_the_query_of_a_signed_url_goes_with_every_request(server: RangeServer, data: str) -> None:
    server.query = "?X-Amz-Signature=TOPSECRET/1"
    plain = open_images(str(server.folder / "plain"), "train")
    images = open_images(f"{server.url}/{data}{server.query}", "train")
    assert contents(images) == contents(plain)
    assert "TOPSECRET" not in images.source


def test_secrets_of_a_url_stay_out_of_messages(
    server: RangeServer, kdcache: Command, tmp_path: Path
) -> None:
    url = server.url.replace("//", "//user:s3cr3t@") + "/none?X-Amz-Signature=TOPSECRET"
    out = str(tmp_path / "o.zarr")
    for command in (["info"], ["cache", "digits", "--out", out, "--teacher", "x", "--data"]):
        outcome = kdcache(*command, url)
        assert (outcome.code in (1, 2), server.url[7:] in outcome.err) == (True, True), outcome.err
        assert "s3cr3t" not in outcome.err + outcome.out
        assert "TOPSECRET" not in outcome.err + outcome.out


def settle(images: ImageDataset) -> None:
    """Wait until every shard that was touched has its local copy."""
    streamed = images.remote
    assert streamed is not None
    end = time.monotonic() + 120
    while len(streamed._local) < len(streamed._asked):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("what", ["plain", "ours", "plain/digits-train-{0000..0000}.tar"])
def test_a_url_is_the_same_data_set(server: RangeServer, digits: Path, what: str) -> None:
    expected = contents(open_images(str(digits), "train"))
    for _ in range(2):  # the second time from the local folder
        images = open_images(f"{server.url}/{what}", "train")
        assert contents(images) == expected
        assert contents(images.subset(np.arange(99, -1, -1))) == expected
    assert has_split(f"{server.url}/plain", "validation")
    assert not has_split(f"{server.url}/ours", "teacher")


def test_a_second_run_fetches_no_image(server: RangeServer) -> None:
    for what in ("plain", "ours"):
        images = open_images(f"{server.url}/{what}", "train")
        contents(images)
        settle(images)
        before = server.sent
        contents(open_images(f"{server.url}/{what}", "train"))
        assert server.sent - before < 2000  # _info.json and no more


def test_opening_shards_of_ours_reads_their_index_only(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "0")
    images = open_images(f"{server.url}/ours", "train")
    assert not [name for name, range_ in server.asked if name.endswith(".tar") and range_]
    before, label = server.sent, 3 * 512  # its header and content, and the image's header
    assert label + len(images.read(7)) == server.sent - before


def test_reads_that_follow_each_other_are_few_requests(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "0")
    images = open_images(f"{server.url}/ours", "train")
    before = len(server.asked)
    contents(images)
    assert len(server.asked) - before <= 2 * 3  # three shards of 40 images at most
    size = sum(p.stat().st_size for p in (server.folder / "ours").glob("train-*.tar"))
    assert int(images.length_N.sum()) < size


def test_reading_ahead_gives_the_bytes_that_are_there() -> None:
    data = np.random.Philox(key=3).random_raw(2**20).tobytes()
    asked: list[int] = []

    def part(shard: int, begin: int, end: int) -> bytes:
        asked.append(end - begin)
        return data[begin:end]

    reader = readahead.ReadAhead(part)
    places = [i * 50_000 for i in range(160)]
    places[::7], places[1::7] = places[1:155:7] + places[154:155], places[:160:7]
    for begin in places:
        assert reader.read(0, begin, begin + 40_000, len(data)) == data[begin : begin + 40_000]
    assert len(asked) < 20
    assert sum(asked) < 3 * len(data)
    asked.clear()
    for begin in (0, 4_000_000, 100, 7_000_000):  # and nothing is read ahead of scattered reads
        assert reader.read(1, begin, begin + 10, len(data)) == data[begin : begin + 10]
    assert asked == [10] * 4


def test_memory_and_globs(digits: Path, kept: Path) -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in digits.glob("digits-*.tar"):
        system.pipe_file(f"/lab/set/{path.name}", path.read_bytes())
    expected = contents(open_images(str(digits), "teacher"))
    for what in ("digits-teacher-*.tar", "digits-teacher-{0000..0001}.tar"):
        assert contents(open_images(f"memory://lab/set/{what}", "train")) == expected
    assert contents(open_images("memory://lab/set", "validation")).keys() != expected.keys()
    one = open_images("memory://lab/set/digits-train-0000.tar", "train")
    assert contents(one) == contents(open_images(str(digits), "train"))


@pytest.mark.parametrize("limit", ["0", "20KB", "1GB"])
@pytest.mark.parametrize("what", ["plain", "ours"])
def test_failures_cost_time_and_nothing_else(
    server: RangeServer,
    digits: Path,
    what: str,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", limit)
    monkeypatch.setattr(
        fsspec_client, "TRIES", 30
    )  # by chance one thread could have all the trouble
    kinds = ("500", "cut", "", "", "cut", "")
    server.trouble = lambda number, path: kinds[number % 6]
    images = open_images(f"{server.url}/{what}", "train")
    assert contents(images) == contents(open_images(str(digits), "train"))


def test_a_request_without_an_answer_is_repeated(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "SILENCE", 1.0)
    server.trouble = lambda number, path: "silence" if number in (2, 4) else ""
    assert len(open_images(f"{server.url}/plain", "train")) == 100


def test_flipped_bits_never_arrive(
    server: RangeServer, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "0")
    expected = contents(open_images(str(digits), "train"))
    images = open_images(f"{server.url}/ours", "train")
    server.trouble = lambda number, path: "flip" if number % 2 else ""
    assert contents(images) == expected
    server.trouble = lambda number, path: ""
    images = open_images(f"{server.url}/ours", "train")
    server.trouble = lambda number, path: "flip"
    with pytest.raises(DataError, match="are not those of its index"):
        images.read(0)


def test_a_damaged_local_copy_is_dropped(server: RangeServer, digits: Path, kept: Path) -> None:
    url, expected = f"{server.url}/plain", contents(open_images(str(digits), "train"))
    open_images(url, "train")
    (copy,) = (kept / "shards").iterdir()
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    copy.write_bytes(data)
    assert contents(open_images(url, "train")) == expected
    assert not copy.exists()
    for index in (kept / "index").rglob("*"):
        if index.is_file():
            index.write_bytes(index.read_bytes()[:-9])
    assert contents(open_images(url, "train")) == expected


def test_a_shard_that_changes_under_a_run_is_an_error(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "0")
    images = open_images(f"{server.url}/plain", "train")
    path = server.folder / "plain/digits-train-0000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:512] + data[1024:1536] + bytes(len(data) - 1024))
    with pytest.raises(DataError, match="has changed since this run opened it"):
        images.read(50)
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        images.read(50)


def test_a_shard_that_changes_while_it_is_indexed_is_an_error(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, download = (
        server.folder / "plain/digits-train-0000.tar",
        fsspec_client.FsspecClient.download,
    )

    def replaced(self: fsspec_client.FsspecClient, *arguments: Any) -> None:
        download(self, *arguments)
        os.utime(path, (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(fsspec_client.FsspecClient, "download", replaced)
        with pytest.raises(DataError, match="has changed since this run opened it"):
            open_images(f"{server.url}/plain", "train")
    assert len(open_images(f"{server.url}/plain", "train"))


def test_a_server_without_ranges_serves_too(server: RangeServer, digits: Path) -> None:
    server.ranges = False
    for what in ("plain", "ours"):
        images = open_images(f"{server.url}/{what}", "train")
        assert contents(images) == contents(open_images(str(digits), "train"))


def test_a_limit_is_kept_and_old_shards_make_room(
    server: RangeServer, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (server.folder / "plain/digits-train-0000.tar").stat().st_size
    old = kept / "shards" / disk_cache.key("old")
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(size))
    os.utime(old, (0, 0))
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", str(size + 10))
    open_images(f"{server.url}/plain", "train")
    assert not old.exists()
    (copy,) = (p for p in (kept / "shards").iterdir() if p.suffix == "")
    assert copy.stat().st_size == size
    images = open_images(f"{server.url}/plain", "validation")  # larger than the limit
    contents(images)
    total = sum(p.stat().st_size for p in (kept / "shards").iterdir())
    assert total <= size + 10
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "many")
    with pytest.raises(UsageError, match="200GB"):
        open_images(f"{server.url}/plain", "train")


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = [disk_cache.parse_size(s) for s in ("0", "512", "20kB", "1.5T", "3 GB")]
    assert sizes == [0, 512, 20_000, 1_500_000_000_000, 3_000_000_000]


@pytest.mark.parametrize("what", ["plain", "ours"])
def test_what_is_kept_is_thrown_out_when_it_cannot_be_right(
    server: RangeServer, digits: Path, kept: Path, what: str
) -> None:
    """Indices and copies of shards: empty, cut, flipped, each other's, folders."""
    shutil.rmtree(kept / "index", ignore_errors=True)  # of the data set that the server was given
    images = open_images(f"{server.url}/{what}", "train")
    expected = contents(images)
    settle(images)
    copies = sorted((kept / "shards").iterdir())
    indices = sorted(path for path in (kept / "index").rglob("*") if path.is_file())
    assert copies
    for path in indices:
        whole = path.read_bytes()
        for damaged in (b"", whole[:-40] + b"x" + whole[-39:], indices[-1].read_bytes()):
            path.write_bytes(damaged)
            assert contents(open_images(f"{server.url}/{what}", "train")) == expected
            assert path.read_bytes() == whole
    for path in (*copies, *indices):
        path.unlink()
        (path / "inner").mkdir(parents=True)
    images = open_images(f"{server.url}/{what}", "train")
    assert contents(images) == expected
    settle(images)
    assert expected == contents(open_images(str(digits), "train"))
    for path in indices:  # a copy that is damaged, whose index is gone, makes no index
        path.unlink()
    for path in copies:
        path.write_bytes(path.read_bytes()[:-3000].replace(b"PNG", b"PNg") + bytes(3000))
    assert contents(open_images(f"{server.url}/{what}", "train")) == expected


def test_two_runs_download_a_shard_once(kept: Path) -> None:
    import threading

    name, made = "a" * 64, []

    def want() -> None:
        with DiskCache().writing(name) as partial:
            if DiskCache().shard(name, 3) is None:
                made.append(1)
                time.sleep(0.02)
                partial.write_bytes(b"abc")

    several = [threading.Thread(target=want) for _ in range(2)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert made == [1]
    assert (kept / "shards" / name).read_bytes() == b"abc"


def test_a_pipeline_and_a_student_work_from_a_url(
    server: RangeServer, teacher: Path, digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    url, out = f"{server.url}/ours", tmp_path / "cache.zarr"
    said = kdcache(
        "cache", "digits", "--data", url, "--teacher", teacher, "--out", out, "--device", "cpu",
        "--data-cache", tmp_path / "elsewhere", "num_views=4", "views.mixup=0.5",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert (tmp_path / "elsewhere/index").is_dir()
    # the same cache as from the shards on the disk, but for the names of its classes
    assert Cache.open(out).table.sha256 == Cache.open(digits_cache).table.sha256
    chunks = [
        p.relative_to(digits_cache) for p in digits_cache.glob("targets/*/c/**/*") if p.is_file()
    ]
    assert chunks
    assert all(
        (out / chunk).read_bytes() == (digits_cache / chunk).read_bytes() for chunk in chunks
    )
    assert Cache.open(out).source == url
    run = tmp_path / "run"
    said = kdcache("train", "digits", "--cache", out, "--out", run, "epochs=1", "views_per_epoch=2")
    assert said.code == 0, said.err
    assert json.loads((run / "config.json").read_text())["data"] == url
    assert kdcache("verify", out, "--data", url).code == 0


MISTAKES = {
    "nothing": "there are no shards at",
    "plain/digits-none-{0000..0003}.tar": "not one of the 4 names",
    "plain/digits-teacher-{0000..0003}.tar": "2 of the 4 shards",
    "plain/digits-teacher-{0000..0001.tar": "without its other half",
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_with_urls_are_explained(server: RangeServer, kdcache: Command, what: str) -> None:
    said = kdcache("plan", "digits", "--data", f"{server.url}/{what}")
    assert (said.code, "Traceback" in said.err) == (2, False)
    assert MISTAKES[what] in said.err


@pytest.mark.parametrize("remote", [False, True])
def test_mistakes_with_shards_are_explained(server: RangeServer, remote: bool) -> None:
    folder = server.folder / "plain"
    base = f"{server.url}/plain" if remote else str(folder)
    with pytest.raises(UsageError, match="not one of the 2 names"):
        open_images(f"{base}/none-{{0..1}}.tar", "train")
    with pytest.raises(UsageError, match=r"1 of the 3 shards.*digits-teacher-0002\.tar"):
        open_images(f"{base}/digits-teacher-{{0000..0002}}.tar", "train")
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"].update(shard_lengths=[99], num_samples=99)
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"digits-train-0000\.tar has 99 samples, 100 are in it"):
        open_images(base, "train")
    info["splits"]["train"].update(num_samples=98)
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="num_samples is 98, the shards have 99"):
        open_images(base, "train")
    info["splits"]["train"].update(filenames=["../secret.tar"], num_samples=99)
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="not below the folder"):
        open_images(base, "train")
    info["splits"]["train"].update(filenames=["gone.tar"])
    (folder / "_info.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="not one of the 1 names"):
        open_images(base, "train")


def test_a_server_that_stays_broken_is_named(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_client, "TRIES", 3)
    server.trouble = lambda number, path: "500"
    with pytest.raises(DataError, match=r"503.*at try 3 of 3"):
        open_images(f"{server.url}/plain", "train")
    assert len(server.asked) >= 3
    with pytest.raises(DataError, match=r"503.*at try 3 of 3"):
        Cache.open(f"{server.url}/some.zarr")
    with pytest.raises(UsageError, match="nosuch"):
        open_images("nosuch://x/y-{0..1}.tar", "train")


@pytest.mark.parametrize(
    "pattern",
    ["a-{0..999999999999}.tar", "{0..9999}-{0..9999}.tar", "{a,b}" * 40 + ".tar", "{a..z}" * 9],
)
def test_a_pattern_of_too_many_names_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="more than 1,000,000 names"):
        open_images(pattern, "train")


def test_damage_in_the_middle_of_a_local_shard_is_seen(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = bytearray((digits / "digits-train-0000.tar").read_bytes())
    data[40 * 1024 + 148 : 40 * 1024 + 156] = b"garbage!"  # the checksum of a header
    path.write_bytes(data)
    with pytest.raises(DataError, match="is no member of a tar"):
        open_images(str(path), "train")


def test_more_shards_than_open_files(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # pools of other tests
    limit = 2 * (FilePool.kept + 3)
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    images = open_images(str(digits), "train")
    shard_writer.write(images, tmp_path / "s", shard_writer.Options(shard_size=10))
    made = open_images(str(tmp_path / "s"), "train")
    assert contents(made) == contents(images)
    assert len(made._file_pool._open) + len(images._file_pool._open) == 3
