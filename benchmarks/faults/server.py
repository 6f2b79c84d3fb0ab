"""Web servers in processes of their own: one that serves a folder, others that misbehave."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that go away."""


class Handler(BaseHTTPRequestHandler):
    """Answers from a folder, with ranges, entity tags and listings."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.answer(False)

    def do_GET(self) -> None:
        """Answer with a body."""
        self.answer(True)

    def answer(self, body: bool) -> None:
        """Send a file, a range of it, or a listing of a folder."""
        path = self.folder / self.path.lstrip("/").partition("?")[0]
        if path.is_dir():
            links = "".join(f'<a href="{p.name}{"/" * p.is_dir()}">x</a>' for p in path.iterdir())
            self.send(200, links.encode(), body, {"Content-Type": "text/html"})
            return
        if not path.is_file():
            self.send(404, b"", body)
            return
        data, found = path.read_bytes(), path.stat()
        headers = {"ETag": f'"{found.st_mtime_ns}-{found.st_size}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            self.send(206, data[begin:end], body, headers)
        else:
            self.send(200, data, body, headers)

    def send(
        self, code: int, data: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        """Send a response of known length."""
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve(folder: Path, handler: type[Handler] = Handler) -> Iterator[str]:
    """Serve a folder from a process of its own; yields the URL."""
    kind = type("Bound", (handler,), {"folder": folder})
    server = _Server(("127.0.0.1", 0), kind)
    pid = os.fork()
    if not pid:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(0.05)
        os._exit(0)
    server.server_close()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
