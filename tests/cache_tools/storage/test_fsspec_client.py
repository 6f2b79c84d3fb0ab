"""URLs that cannot be, or where nothing is: said at once, with what to do instead."""

import contextlib
import logging
import socket
import threading
from asyncio import timeout
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import pytest
from aiohttp import ClientConnectorDNSError
from s3fs import S3FileSystem

from cache_tools.errors import DataError
from cache_tools.storage import bounded_http, fsspec_client
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


class _Endless(BaseHTTPRequestHandler):
    """Sends `length` bytes by its own word, and more of them than any reader has memory for."""

    protocol_version = "HTTP/1.1"
    sent = 0
    one_byte = False
    headers_of_get: ClassVar[dict[str, str]] = {}

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1353")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in self.headers_of_get.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            if self.one_byte:
                self.wfile.write(b"A")
                self.rfile.read(1)  # until the client has gone
                return
            for _ in range(2**10):
                self.wfile.write(bytes(2**20))
                type(self).sent += 2**20

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Endless, "sent", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_body_is_read_to_the_end_of_the_request_only(endless: str) -> None:
    client = fsspec_client.FsspecClient(f"{endless}/c.zarr")
    assert client.read("zarr.json", 2**20) == bytes(1353)
    assert client.part("shard.tar", 10, 20, 2**40) == bytes(10)
    assert client.sized("zarr.json", 500) == bytes(500)
    assert _Endless.sent < 2**27  # buffers of the sockets


def test_pages_and_compressed_bodies_have_a_limit(
    endless: str, monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    client = fsspec_client.FsspecClient(endless)
    with pytest.raises(DataError, match="a page has more than 4,194,304 bytes"):
        client.find("*")
    monkeypatch.setattr(_Endless, "headers_of_get", {"Content-Encoding": "gzip"})
    with pytest.raises(DataError, match="compressed content"):
        client.read("zarr.json", 2**20)


def test_another_range_than_was_requested_is_refused(
    endless: str, monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    def first_bytes(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/1353")
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(bytes(10))

    monkeypatch.setattr(_Endless, "do_GET", first_bytes)
    client = fsspec_client.FsspecClient(endless)
    assert client.part("shard.tar", 0, 10, 1353) == bytes(10)
    with pytest.raises(DataError, match="bytes from 0 on came, 100 on were requested"):
        client.part("shard.tar", 100, 110, 1353)
    assert tries == []


def test_a_file_without_a_size_is_refused_with_the_next_step(
    endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True

    for method in ("do_HEAD", "do_GET"):
        monkeypatch.setattr(_Endless, method, without)
    with pytest.raises(DataError, match=r"no size of .*Serve a folder of plain files"):
        fsspec_client.FsspecClient(endless).stat("zarr.json")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/c.zarr"])
def test_redirects_stay_within_http_and_end(
    endless: str, to: str, monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    def moved(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(_Endless, "do_GET", moved)
    with pytest.raises(DataError, match=r"redirects (do not end|to what).*, at try 1 of 7"):
        fsspec_client.FsspecClient(f"{endless}/c.zarr").part("", 0, 10, 10)
    assert tries == []


def test_a_page_of_unfinished_tags_has_no_links(
    endless: str, monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        body = b"<a " * 300_000
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setattr(_Endless, "do_GET", page)
    assert fsspec_client.FsspecClient(endless).find("*.tar") == []


def test_a_slow_body_ends(
    endless: str, monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    monkeypatch.setattr(_Endless, "one_byte", True)
    monkeypatch.setattr(bounded_http, "timeout", lambda limit: timeout(limit / 1000))
    with pytest.raises(DataError, match="no response in time, at try 7 of 7"):
        fsspec_client.FsspecClient(endless).read("zarr.json", 2**20)


def test_offline_mode_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_tools.errors import DataError
    from cache_tools.storage.fsspec_client import FsspecClient

    class OfflineModeIsEnabled(ConnectionError):
        """As huggingface_hub's."""

    client, calls = FsspecClient("memory://lab"), []

    def offline(_: str) -> None:
        calls.append(1)
        raise OfflineModeIsEnabled("offline mode")

    monkeypatch.setattr(client._fs, "info", offline)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        client.stat("x")
    assert len(calls) == 1


def test_an_unknown_host_is_an_error_at_once_unless_it_was_known(
    monkeypatch: pytest.MonkeyPatch, tries: list[float]
) -> None:
    client = fsspec_client.FsspecClient("https://host/folder?token=s3cr3t")
    key = SimpleNamespace(host="host", port=443, ssl=True, is_ssl=True)

    def unknown(*_: object) -> None:
        raise ClientConnectorDNSError(key, socket.gaierror(-3, "Temporary failure"))  # type: ignore[arg-type]

    monkeypatch.setattr(client._fs, "info", unknown)
    with pytest.raises(DataError, match="No host of this name is found") as error:
        client.stat("a")
    assert (tries, "s3cr3t" in str(error.value)) == ([], False)
    monkeypatch.setattr(client._fs, "info", lambda _: {"size": 3, "type": "file"})
    assert client.stat("a") == (3, "")
    monkeypatch.setattr(client._fs, "info", unknown)
    with pytest.raises(DataError, match="No host of this name is found"):
        client.stat("a")
    assert len(tries) == fsspec_client.TRIES - 1


class RepositoryNotFoundError(OSError):
    """As huggingface_hub's."""


class GatedRepoError(RepositoryNotFoundError):
    """As huggingface_hub's."""

    response = type("Response", (), {"status_code": 401})


@pytest.mark.parametrize("token", ["", "hf_secret"])
def test_a_gated_repository(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    client = fsspec_client.FsspecClient("hf://datasets/ILSVRC/imagenet-1k@main/data")

    def gated(*_: object, **__: object) -> None:
        raise FileNotFoundError("not found") from GatedRepoError("Cannot access gated repo")

    monkeypatch.setattr(client._fs, "info", gated)
    with pytest.raises(DataError, match="Cannot access gated repo") as raised:
        client.stat("train-00000-of-00294.parquet")
    text = str(raised.value)
    assert "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k, once" in text
    assert ("No token is set" in text, "hf auth login" in text) == (not token, True)
    assert "hf_secret" not in text
