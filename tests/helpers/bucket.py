"""An S3-compatible server on the loopback (moto's), with failures in front of it."""

import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

Trouble = Callable[[int, str], str]
"""(number of the request, method and path) → "", "500", "cut" or "slow"."""


class Bucket:
    """The server; counts requests."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.trouble: Trouble = lambda number, what: ""
        self.asked: list[str] = []
        self._lock = threading.Lock()
        self.server = make_server("127.0.0.1", 0, self, threaded=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self._lock:
            number = len(self.asked)
            self.asked.append(what)
        trouble = self.trouble(number, what)
        if trouble == "500":
            start("500 Internal Server Error", [("Content-Length", "0")])
            return []
        if trouble == "slow":
            threading.Event().wait(0.2)
        body: Iterable[bytes] = self._app(environ, start)
        return self._half(body) if trouble == "cut" else body

    def _half(self, body: Iterable[bytes]) -> Iterator[bytes]:
        data = b"".join(body)
        yield data[: len(data) // 2]
        raise ConnectionResetError("cut")


@contextmanager
def serve() -> Iterator[Bucket]:
    """A running server with nothing in it."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    reset = urllib.request.Request(f"{bucket.url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # moto's buckets outlive its servers
    S3FileSystem.clear_instance_cache()  # which would talk to the server before
    try:
        yield bucket
    finally:
        bucket.server.shutdown()
        bucket.server.server_close()
        thread.join()
