"""Responses of HTTP servers, read as far as was requested and no further.

fsspec reads a body to its end, so that a server would decide how much memory a reader takes. This
response stops at the end of the requested range, skips what comes before it when the server ignores
ranges, and has a limit to its whole time.
"""

import re
from asyncio import timeout

from aiohttp import ClientPayloadError, ClientResponse

MAX_PAGE = 2**22
"""Bytes of a response to a request without a range: a page that lists files."""
_MOST_TAG = 1024
"""Characters of a page without the end of a tag: fsspec searches links in quadratic time."""
SILENCE = 60.0
"""Seconds between two packets, and of any request beside the time at SLOWEST."""
SLOWEST = 2**14
"""Bytes per second below which a request fails."""
_PIECE = 2**16
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_BEGIN = re.compile(r"bytes (\d{1,20})-")


class RefusedResponse(ClientPayloadError):
    """A response that another try would not change."""


class BoundedResponse(ClientResponse):
    """A response whose body is read up to the end of the requested range."""

    async def read(self) -> bytes:
        """Read the requested bytes of the body.

        Raises:
            ClientPayloadError: It is compressed, of another range, or a page of more than MAX_PAGE
                bytes.
            TimeoutError: It comes more slowly than SLOWEST.
        """
        if self._body is None:
            found = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
            first, last = map(int, found.groups()) if found else (0, MAX_PAGE)
            begin = _BEGIN.match(self.headers.get("Content-Range", ""))
            if found and self.status == 206 and begin and int(begin[1]) != first:
                self.close()
                raise RefusedResponse(f"bytes from {begin[1]} on came, {first} on were requested")
            skipped = first if self.status == 200 else 0
            wanted = last + 1 - first
            async with timeout(SILENCE + (skipped + wanted) / SLOWEST):
                self._body = await self._bounded(skipped, wanted)
            if not found and len(self._body) == wanted:
                raise RefusedResponse(f"a page has more than {MAX_PAGE:,} bytes")
        return self._body

    async def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """Decode a page, "" if it is none in which links can be searched."""
        page = re.sub(r"\s+", " ", await super().text(encoding, errors))
        return page if max(map(len, page.split(">"))) <= _MOST_TAG else ""

    async def _bounded(self, skipped: int, wanted: int) -> bytes:
        if self.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            self.close()
            raise RefusedResponse("the server sends compressed content, which was not requested")
        body = bytearray()
        while len(body) <= wanted and (piece := await self.content.read(_PIECE)):
            body += piece[skipped:]
            skipped = max(0, skipped - len(piece))
        if not self.content.at_eof():  # the connection cannot serve again before what follows
            self.close()
        return bytes(body[:wanted])
