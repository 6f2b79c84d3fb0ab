"""Caches in object stores: no folders, no locks, no rename."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.storage import fsspec_client
from cache_tools.storage.folder import Folder
from cache_tools.store import cache as store
from cache_tools.store.cache import Cache
from cache_tools.verify import verify
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers import bucket as bucket_server
from tests.helpers.outcome import Outcome

SMALL = ["num_views=4", "views.mixup=0.5"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged is read again after pauses; a hundredth of them is enough in memory."""
    monkeypatch.setattr(fsspec_client, "FIRST_PAUSE", 0.005)


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty place in memory, which all stores of this process share."""
    url = f"memory://{uuid.uuid4().hex}/cache.zarr"
    yield url
    fs, root = fsspec.core.url_to_fs(url)
    if fs.exists(root):
        fs.rm(root, recursive=True)


def objects(url: str) -> dict[str, bytes]:
    """The same of a URL."""
    fs, root = fsspec.core.url_to_fs(url)
    found = {path.removeprefix(f"{root}/"): path for path in fs.find(root)}
    return {n: fs.cat_file(p) for n, p in found.items() if not n.startswith("commits/v")}


def files(cache: Path) -> dict[str, bytes]:
    """Every file's bytes but those of commit records, which tell the time that a part took."""
    found = {str(p.relative_to(cache)): p for p in cache.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in found.items() if not n.startswith("commits/v")}


def make(digits: Path, teacher: Path, url: str, *more: str) -> Cache:
    return run(recipes.load("digits", [*SMALL, *more]), str(digits), str(teacher), url, "cpu")


def test_a_cache_in_memory_has_the_bytes_of_one_in_a_folder(
    digits_cache: Path, digits: Path, teacher: Path, bucket: str, images: ImageDataset
) -> None:
    assert make(digits, teacher, bucket).name == bucket
    assert objects(bucket) == files(digits_cache)
    fs, root = fsspec.core.url_to_fs(bucket)
    fs.rm(f"{root}/commits/v0002/b0000.json")
    fs.pipe_file(f"{root}/targets/code/c/1/0", b"not what was written")
    make(digits, teacher, bucket)
    assert objects(bucket) == files(digits_cache)
    assert verify.verify(Cache.open(bucket), images).status == "ok"


def test_a_cache_at_file_url_is_the_folder(
    digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    opened = make(digits, teacher, f"file://{tmp_path}/cache.zarr")
    assert opened.path == tmp_path / "cache.zarr"
    assert files(tmp_path / "cache.zarr") == files(digits_cache)
    assert opened.source == str(digits)


def test_chunks_come_before_records_and_the_manifest_last(
    digits: Path, teacher: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    put = fsspec_client.FsspecClient.put
    monkeypatch.setattr(
        fsspec_client.FsspecClient, "put", lambda r, n, d: written.append(n) or put(r, n, d)
    )
    make(digits, teacher, bucket, "num_views=1")
    manifest, record = written.index("zarr.json"), written.index("commits/v0000/b0000.json")
    assert not [n for n in written[:manifest] if n.startswith(("targets/code/c", "commits/v"))]
    assert all("/c/" in n for n in written[manifest + 1 : record])
    assert written[record + 1 :] == []


def test_what_is_no_cache_and_another_cache_are_left_alone(
    digits_cache: Path, digits: Path, teacher: Path, bucket: str
) -> None:
    fs, root = fsspec.core.url_to_fs(bucket)
    fs.pipe_file(f"{root}/thesis.tex", b"years of work")
    with pytest.raises(UsageError, match=r"it contains thesis\.tex.*another --out"):
        make(digits, teacher, bucket)
    fs.rm(root, recursive=True)
    make(digits, teacher, bucket)
    before = objects(bucket)
    with pytest.raises(CacheMismatch, match=r"views\.degrees"):
        make(digits, teacher, bucket, "views.degrees=3.0")
    assert objects(bucket) == before
    opened = Cache.open(digits_cache)
    make(digits, teacher, bucket)
    with pytest.raises(CacheMismatch, match="another process made another cache"):
        Cache.create(bucket, _other(opened), opened.table, 4)


def _other(opened: Cache) -> Any:
    from dataclasses import replace

    return replace(opened.spec, targets=replace(opened.spec.targets, levels=63))


def test_creators_at_once_agree_on_one_cache(
    digits_cache: Path, bucket: str, tmp_path: Path
) -> None:
    """Without a lock, in memory; and with the last files of a folder put in place at once."""
    opened = Cache.open(digits_cache)
    for where in (bucket, tmp_path / "cache.zarr"):
        with ThreadPoolExecutor(4) as pool:
            create = partial(Cache.create, where, opened.spec, opened.table)
            for one in pool.map(create, (4, 6, 4, 6)):
                one.resize(6)
        again = Cache.open(where)
        assert again.num_views == 6
        assert verify.verify(again).status == "incomplete"


def test_growing_never_shrinks_what_another_has_grown(mutable_cache: Path) -> None:
    first, second = Cache.open(mutable_cache), Cache.open(mutable_cache)
    first.resize(8)
    second.resize(6)
    assert (second.num_views, Cache.open(mutable_cache).num_views) == (8, 8)


@pytest.mark.parametrize("seed", range(4))
def test_racing_writers_leave_no_part_of_both(
    digits_cache: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers with other bytes for the same parts, no lock, pauses in the worst places."""
    opened, url = Cache.open(digits_cache), f"memory://{uuid.uuid4().hex}/raced.zarr"
    Cache.create(url, opened.spec, opened.table, 20)
    own = [opened.read(part) for part in list(opened.parts())[:2]]
    put, beat = fsspec_client.FsspecClient.put, iter(range(10**9))

    def slowly(remote: fsspec_client.FsspecClient, name: str, data: bytes) -> None:
        time.sleep((next(beat) * 7 + seed * 3) % 5 / 2000)
        put(remote, name, data)

    monkeypatch.setattr(fsspec_client.FsspecClient, "put", slowly)
    monkeypatch.setattr(store, "_PAUSE_MS", 20)
    monkeypatch.setattr(store, "_TRIES", 10)  # the pauses of a busy machine are no shorter
    errors: list[BaseException] = []

    def write(number: int) -> None:
        racer = Cache.open(url)
        try:
            for part in list(racer.parts())[4:]:
                racer.write(part, own[number][0], own[0][1], {"max_probability": number}, {})
        except BaseException as error:
            errors.append(error)

    racers = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert errors == []
    raced = Cache.open(url)
    winners = set()
    for part in list(raced.parts())[4:]:
        number = int(raced.record(part)["statistics"]["max_probability"])
        assert raced.read(part)[0].code_E.tobytes() == own[number][0].code_E.tobytes()
        winners.add(number)
    assert winners  # whose they are is up to chance


def test_the_command_writes_to_a_url(
    kdcache: Callable[..., Outcome], digits: Path, teacher: Path, bucket: str
) -> None:
    arguments = ("--data", digits, "--teacher", teacher, "--device=cpu", "num_views=2")
    done = kdcache("cache", "digits", *arguments, "--out", bucket)
    assert done.out.startswith(f"{bucket}: 2 of 2 parts")
    assert "2 of 2 parts" in kdcache("status", bucket).out
    missing = kdcache("cache", "digits", *arguments, "--out", "nothing://b/c")
    assert missing.code == 2
    assert "nothing://b/c" in missing.err


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3-compatible server of this machine; what a process needs to reach it."""
    with bucket_server.serve() as running:
        yield {
            "AWS_ENDPOINT_URL": running.url,
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "knows",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.mark.slow
def test_an_s3_bucket_is_written_by_two_processes(
    digits_cache: Path,
    digits: Path,
    teacher: Path,
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3")
    fs.mkdir("caches")
    command = [
        sys.executable,
        "-c",
        "from cache_tools.cli import main as cli; cli.main()",
        "cache",
        "digits",
    ]
    command += [
        "--data",
        str(digits),
        "--teacher",
        str(teacher),
        "--out",
        "s3://caches/a/cache.zarr",
    ]
    both = [
        subprocess.Popen([*command, "--device=cpu", f"--task={n}", "--tasks=2", *SMALL,
                          "views_per_decode=2"], env=os.environ | s3, stderr=subprocess.PIPE)
        for n in (0, 1)
    ]  # fmt: skip
    for process in both:
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 0, said
    fs.invalidate_cache()
    assert objects("s3://caches/a/cache.zarr") == files(digits_cache)
    assert verify.verify(Cache.open("s3://caches/a/cache.zarr")).status == "ok"
    monkeypatch.setattr(fsspec_client, "TRIES", 2)
    with pytest.raises(Exception, match="no-such-bucket"):  # and it is not made by asking
        make(digits, teacher, "s3://no-such-bucket/cache.zarr")
    assert [path.partition("/")[0] for path in fs.ls("")] == ["caches"]


def test_without_a_lock_two_runs_still_make_one_folder(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "creation_lock", lambda self: nullcontext())
    opened = Cache.open(digits_cache)
    stores = [Cache.create(tmp_path / "c.zarr", opened.spec, opened.table, 4) for _ in range(2)]
    assert [one.num_views for one in stores] == [4, 4]
