"""Servers that send too much, too little, too slowly, or send the client elsewhere."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.faults.hostile import Case
from benchmarks.faults.lab import Lab
from benchmarks.faults.server import Handler, serve


def _impatient() -> None:
    """Shorten the limits that are minutes by design, in the process of the command."""
    from cache_tools.storage import bounded_http, fsspec_client

    fsspec_client.TRIES, fsspec_client.FIRST_PAUSE = 2, 0.01
    bounded_http.SILENCE = 3.0


class _Endless(Handler):
    """The body does not end."""

    claims = 1000

    def answer(self, body: bool) -> None:
        """Send without end."""
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        if not body:
            self.send_header("Content-Length", str(self.claims))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        while body:
            self.wfile.write(b"A" * 2**20)


class _EndlessHuge(_Endless):
    """And its size is a tebibyte."""

    claims = 2**40


class _Zipped(Handler):
    """The body is compressed, whatever was asked for."""

    def answer(self, body: bool) -> None:
        """Send a bomb."""
        from benchmarks.faults import bombs

        self.send(200, bombs.gz(600 * 2**20), body, {"Content-Encoding": "gzip"})


class _Slow(Handler):
    """One byte, then another one a second later."""

    def answer(self, body: bool) -> None:
        """Drip."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while body:
            self.wfile.write(b"{")
            time.sleep(1.0)


class _Silent(Handler):
    """No answer."""

    def answer(self, body: bool) -> None:
        """Wait."""
        time.sleep(3600)


class _Redirect(Handler):
    """Every address is elsewhere."""

    to = "/again"

    def answer(self, body: bool) -> None:
        """Redirect."""
        self.send(302, b"", body, {"Location": self.to})


class _ToFile(_Redirect):
    """Redirects to a file of the machine."""

    to = "file:///etc/passwd"


class _ToScript(_Redirect):
    """Redirects to what is no web address."""

    to = "javascript:alert(1)"


class _Range(Handler):
    """Ranges that were not asked for."""

    def answer(self, body: bool) -> None:
        """Send other bytes than those that were requested."""
        data = b"{" * 5000
        self.send(206, data, body, {"Content-Range": "bytes 7-5006/999999999999"})


class _Cut(Handler):
    """Bodies that end too early."""

    def answer(self, body: bool) -> None:
        """Send half."""
        self.close_connection = True
        self.send(200, b"{" * 500, body, {"Content-Length": "1000", "Connection": "close"})


class _Headers(Handler):
    """A header of many megabytes."""

    def answer(self, body: bool) -> None:
        """Send headers."""
        self.send(200, b"{}", body, {f"X-{i}": "x" * 8000 for i in range(3000)})


class _Page(Handler):
    """A page of words in place of every file."""

    def answer(self, body: bool) -> None:
        """Send HTML with escape codes."""
        self.send(200, b"<html>\x1b[31msign in\x07</html>" * 100, body)


class _Error(Handler):
    """Errors with long texts."""

    def answer(self, body: bool) -> None:
        """Fail."""
        self.send(503, b"\x1b[31mno" * 100_000, body)


class _Listing(Handler):
    """A listing of millions of files."""

    def answer(self, body: bool) -> None:
        """List names outside the folder, and very many."""
        links = b'<a href="../../../etc/passwd">x</a><a href="file:///etc/x.tar">x</a>'
        links += b'<a href="s-0000.tar">x</a>' * 600_000
        self.send(404 if "." in self.path else 200, links, body, {"Content-Type": "text/html"})


KINDS = (_Endless, _EndlessHuge, _Zipped, _Slow, _Silent, _Redirect, _ToFile, _ToScript, _Range,
         _Cut, _Headers, _Page, _Error, _Listing)  # fmt: skip


def servers(lab: Lab, stack: ExitStack) -> Iterator[Case]:
    """List the cases of all servers, which run until `stack` is closed."""
    here = lab.folder
    for kind in KINDS:
        url = stack.enter_context(serve(here, kind))
        says = (kind.__doc__ or "").rstrip(".")
        stage1 = ("cache", str(here / "open.toml"), "--data", f"{url}/d", "--device=cpu")
        for words in (
            ("info", f"{url}/c.zarr"),
            ("pull", f"{url}/c.zarr", "c.zarr"),
            (*stage1, "--teacher", str(here / "teacher1"), "--out", "o.zarr"),
        ):
            host = url.partition("//")[2]
            yield Case(
                f"server: {says}, {words[0]}", lambda work: None, words, host, False, _impatient
            )
