"""URLs that cannot be, or where nothing is: said at once, with what to do instead."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from s3fs import S3FileSystem

from cache_tools.storage import fsspec_client
from cache_tools.store.cache import Cache
from tests.helpers import bucket, lab
from tests.helpers.outcome import Outcome
from tests.helpers.range_server import serve

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def served_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab.build(tmp_path_factory.mktemp("urls") / "c.zarr", lab.keys(20), range(1)).path


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses that were made before another try."""
    pauses: list[float] = []
    monkeypatch.setattr(fsspec_client, "time", SimpleNamespace(sleep=pauses.append))
    yield pauses


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("htp://host/c.zarr", 2, "such as https://host/folder"),
        ("ftp://127.0.0.1:1/c.zarr", 1, "cannot be reached"),
        ("s3://", 2, "names no bucket"),
        ("file://folder/c.zarr", 2, "file:///"),
        ("folder/c.zarr", 2, "Check the path"),
    ],
)
def test_a_url_that_cannot_be_is_explained(
    url: str, code: int, message: str, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("pull", url, tmp_path / "out.zarr")
    assert (said.code, message in said.err) == (code, True), said.err
    assert "Traceback" not in said.err


def test_a_place_without_a_cache_is_refused_with_a_hint(
    served_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    with serve(served_cache.parent) as server:
        said = kdcache("pull", server.url, tmp_path / "out.zarr")
        assert (said.code, f"{server.url}/cache.zarr" in said.err) == (2, True)
        said = kdcache("pull", f"{server.url}/c.zarr/zarr.json", tmp_path / "out.zarr")
        assert (said.code, f"such as {server.url}/c.zarr." in said.err) == (2, True)
        assert kdcache("pull", f"{server.url}/c.zarr/", tmp_path / "out.zarr").code == 0


def test_a_request_to_a_server_without_tls_is_not_repeated(
    served_cache: Path, tmp_path: Path, kdcache: Command, tries: list[float]
) -> None:
    with serve(served_cache.parent) as server:
        secure = server.url.replace("http://", "https://")
        said = kdcache("pull", f"{secure}/c.zarr", tmp_path / "out.zarr")
    assert (said.code, "is it http://" in said.err) == (1, True), said.err
    assert tries == []


def test_a_cache_is_not_cut_in_its_own_place(served_cache: Path, kdcache: Command) -> None:
    for command, where in (("select", served_cache), ("pull", f"file://{served_cache}")):
        said = kdcache(command, where, served_cache, "--views", "0:1")
        assert (said.code, "the cache itself" in said.err) == (2, True)


def test_a_folder_that_cannot_be_is_no_lock_to_remove(
    served_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    (tmp_path / "file").write_text("")
    said = kdcache("push", served_cache, f"file://{tmp_path}/file/c.zarr")
    assert (said.code, "Check the path and its permissions" in said.err) == (1, True), said.err


def test_buckets_get_no_needless_requests(
    served_cache: Path,
    tmp_path: Path,
    kdcache: Command,
    monkeypatch: pytest.MonkeyPatch,
    tries: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No credentials, no bucket, no such file: asking again would change nothing."""
    caplog.set_level(logging.INFO, "kdcache")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with bucket.serve() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        said = kdcache("pull", "s3://caches/c.zarr", tmp_path / "out.zarr")
        assert (said.code, "FSSPEC_S3_ANON" in said.err) == (1, True), said.err
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        S3FileSystem.clear_instance_cache()  # which has none
        said = kdcache("pull", "s3://caches/c.zarr", tmp_path / "out.zarr")
        assert (said.code, "no cache at s3://caches/c.zarr" in said.err) == (2, True), said.err
        said = kdcache("push", served_cache, "s3://caches/c.zarr", "--license", "other")
        assert (said.code, "bucket does not exist" in said.err) == (1, True), said.err
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("caches")
        assert fsspec_client.FsspecClient("s3://caches/c.zarr").stat("zarr.json") is None
        with pytest.raises(FileNotFoundError):
            fsspec_client.FsspecClient("s3://caches/c.zarr").sized("zarr.json", 9)
        assert kdcache("push", served_cache, "s3://caches/c.zarr", "--license", "other").code == 0
        assert (
            Cache.open("s3://caches/c.zarr").content_id() == Cache.open(served_cache).content_id()
        )
    assert tries == []
