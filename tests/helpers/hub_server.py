"""The Hub on the loopback, as far as a data set is listed and read: gated, by a token."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

TOKEN = "hf_of_one_who_accepted"
NAME = "lab/photos"


@contextmanager
def serve(folder: Path, gated: bool = False) -> Iterator[str]:
    """Serve the files of a folder as the data set NAME; the address of the Hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/api").removeprefix(f"/datasets/{NAME}")
            what, _, rest = path.strip("/").partition("/")
            if what in ("", "revision"):
                info = {"_id": "1", "id": NAME, "sha": "0" * 40, "siblings": [], "tags": []}
                return self._send(200, json.dumps(info).encode())
            below = folder / rest.partition("/")[2]
            if what == "tree" and below.is_dir():
                found = sorted(
                    below.rglob("*") if "recursive=true" in self.path else below.iterdir()
                )
                return self._send(200, json.dumps([self._entry(p) for p in found]).encode())
            if what != "resolve" or not below.is_file():
                return self._send(404, b"", "EntryNotFound")
            if gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, b"", "GatedRepo")
            data, part = below.read_bytes(), self.headers.get("Range", "bytes=0-")
            begin, _, end = part.removeprefix("bytes=").partition("-")
            return self._send(206, data[int(begin) : int(end) + 1 if end else None])

        do_HEAD = do_GET

        def _entry(self, path: Path) -> dict[str, object]:
            kind = "directory" if path.is_dir() else "file"
            name = path.relative_to(folder).as_posix()
            return {"type": kind, "path": name, "oid": "1", "size": path.stat().st_size}

        def _send(self, status: int, body: bytes, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if error:
                self.send_header("X-Error-Code", error)
                self.send_header("X-Error-Message", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
