"""A tiny web server on the loopback that knows Range and ETag, and fails when it is told to."""

import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Trouble = Callable[[int, str], str]
"""(number of the request, path) → what goes wrong: "", "500", "cut", "silence", "flip"."""


def per_file(kinds: Mapping[int, str], every: int) -> Trouble:
    """Trouble that depends on a file and how often it was asked for, and not on who asks first.

    By the number of the request alone, threads could share it so that one of them gets it all.
    """
    asked, lock = Counter[str](), threading.Lock()

    def trouble(_: int, path: str) -> str:
        with lock:
            asked[path] += 1
            return kinds.get((zlib.crc32(path.encode()) + asked[path]) % every, "")

    return trouble


class RangeServer(ThreadingHTTPServer):
    """Serves a folder; counts requests and bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.trouble: Trouble = lambda number, path: ""
        self.ranges = True
        self.query = ""
        """End of every request, as of a signed URL; others are refused."""
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away: no news."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        server = self.server
        name, mark, query = self.path.lstrip("/").partition("?")
        with server.lock:
            number = len(server.asked)
            server.asked.append((name, self.headers.get("Range", "")))
        trouble = server.trouble(number, name)
        if mark + query != server.query:
            trouble, name = "", "forbidden"
        path = server.folder / name
        if trouble == "500" or not path.is_file():
            self.send_response(503 if trouble else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        found = path.stat()
        asked = self.headers.get("Range", "") if server.ranges else ""
        begin, end = 0, len(data)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", f'"{found.st_mtime_ns}-{found.st_size}"')
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._send(data[begin:end], trouble)

    def _send(self, data: bytes, trouble: str) -> None:
        if trouble == "silence":  # longer than the client's patience
            threading.Event().wait(3)
            self.close_connection = True
            return
        if trouble == "flip" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if trouble == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        with self.server.lock:  # before the client knows that it has them
            self.server.sent += len(data)
        self.wfile.write(data)


@contextmanager
def serve(folder: Path) -> Iterator[RangeServer]:
    """A running server."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
