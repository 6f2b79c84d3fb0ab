"""Training from a cache behind a URL: the same student, whatever the network does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from cache_tools.share import push
from cache_tools.storage import cached, fsspec_client
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.open import open_cache
from tests.helpers import bucket
from tests.helpers.outcome import Outcome
from tests.helpers.range_server import RangeServer, per_file, serve

Command = Callable[..., Outcome]
SHORT = ("epochs=2", "views_per_epoch=1", "batch_size=32")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no long waiting."""
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(fsspec_client, "FIRST_PAUSE", 0.001)
    return tmp_path / "kept"


@pytest.fixture
def server(digits_cache: Path) -> Iterator[RangeServer]:
    with serve(digits_cache.parent) as running:
        yield running


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_student_is_the_same_and_only_its_views_are_fetched(
    server: RangeServer, digits_cache: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    server.trouble = per_file({2: "500", 3: "cut", 5: "flip"}, 11)
    url = f"{server.url}/{digits_cache.name}"
    said = kdcache(
        "train", "digits", "--cache", url, "--data", digits, "--out", tmp_path / "a", *SHORT
    )
    assert said.code == 0, said.err
    assert "kept on this machine" in said.err
    said = kdcache(
        "train",
        "digits",
        "--cache",
        digits_cache,
        "--data",
        digits,
        "--out",
        tmp_path / "b",
        *SHORT,
    )
    assert said.code == 0, said.err
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["cache"] == url
    fetched = {name for name, _ in server.asked if "targets/code/c" in name}
    assert {name[-3:] for name in fetched} == {"0/0", "1/0"}
    sent = server.sent
    server.trouble = lambda number, path: ""
    store = open_cache(url)
    assert len(store.table) == len(store.read_view(1))
    assert server.sent - sent < 5000  # the manifest


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def of_another_cache(path: Path) -> None:
    """A file that decodes: one of the same array or column."""
    others = [p for p in path.parents[1].rglob("*") if p.is_file() and p.name == path.name]
    path.write_bytes(max(others, key=lambda p: p != path).read_bytes())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    "empty": lambda p: p.write_bytes(b""),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "longer": lambda p: p.write_bytes(p.read_bytes() * 2),
    "a folder": replaced_by_folder,
    "another's": of_another_cache,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_kept_is_not_believed(
    server: RangeServer, digits_cache: Path, folder: Path, kind: str
) -> None:
    """Each kept file is damaged, all at once; the next run fetches them again, and goes on."""
    url = f"{server.url}/{digits_cache.name}"
    expected = Cache.open(digits_cache).read(Part(0, 0))[0].code_E.tolist()
    store = open_cache(url)
    assert store.read(Part(0, 0))[0].code_E.tolist() == expected
    assert store.table.sha256 == Cache.open(digits_cache).table.sha256
    kept = [p for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts]
    whole = {path: path.read_bytes() for path in kept}
    assert len(whole) > 12
    for path in kept:
        DAMAGES[kind](path)
    again = open_cache(url)
    assert again.present(Part(0, 0))
    assert again.read(Part(0, 0))[0].code_E.tolist() == expected
    assert again.table.sha256 == store.table.sha256
    assert {path: path.read_bytes() for path in kept} == whole


def test_a_full_folder_is_reported_and_others_make_room(
    server: RangeServer, digits_cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(cached.log, "warning", lambda text, *words: warned.append(text % words))
    store = open_cache(f"{server.url}/{digits_cache.name}")
    monkeypatch.setenv("KDCACHE_CACHE_LIMIT", "4K")
    others = [folder / f"caches/another/{i}" for i in range(3)]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1300))
    for view in range(4):
        store.read(Part(view, 0))
    assert not any(path.exists() for path in others)
    assert 0 < sum(p.stat().st_size for p in DiskCache()._cache_files()) <= 4000
    assert len(warned) == 1
    assert "the data folder is full" in warned[0]
    asked = len(server.asked)
    store.read(Part(0, 0))  # the first ones stay
    first = len(server.asked) - asked
    store.read(Part(3, 0))
    assert len(server.asked) - asked - first > first


def test_a_part_that_is_missing_is_named_before_anything_is_trained(
    mutable_cache: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    (mutable_cache / Part(3, 0).record).unlink()
    out = tmp_path / "run"
    said = kdcache(
        "train", "digits", "--cache", f"file://{mutable_cache}", "--data", digits, "--out", out
    )
    assert (said.code, "view 3, block 0" in said.err) == (1, True)


@pytest.mark.slow
def test_training_from_a_bucket_that_fails(
    digits_cache: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kdcache: Command,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(
        fsspec_client, "TRIES", 20
    )  # by chance one thread could have all the trouble
    with bucket.serve() as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("caches")
        push.run(Cache.open(digits_cache), "s3://caches/c.zarr", None)
        failed: list[str] = []

        def trouble(number: int, what: str) -> str:
            now = {3: "500", 5: "cut", 7: "slow"}.get(number % 11, "")
            failed.extend([now] if now else [])
            return now

        s3.trouble = trouble
        where = ("--cache", "s3://caches/c.zarr", "--data", digits, "--out", tmp_path / "a")
        said = kdcache("train", "digits", *where, *SHORT)
        assert said.code == 0, said.err
        assert failed
    where = ("--cache", digits_cache, "--data", digits, "--out", tmp_path / "b")
    assert kdcache("train", "digits", *where, *SHORT).code == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
