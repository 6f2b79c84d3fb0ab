"""Bytes from and to a URL, through fsspec: asked for again when the network fails, never cut short.

fsspec knows http(s), hf, s3, gs, memory and more by the beginning of a URL, each with exceptions of
its own. Here they are of two kinds: what will not change by asking again (not found, forbidden),
and everything else, which is tried TRIES times with growing pauses.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cache_tools.errors import DataError, UsageError

log = logging.getLogger("kdcache")
TRIES = 7
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second try, and the most that the pause doubles to."""
PIECE = 2**24
"""Bytes of one request when a file is downloaded: what is lost when the connection is."""
_CONNECT, _SILENCE = 30.0, 60.0
_VERSIONS = ("ETag", "etag", "md5", "blob_id", "Last-Modified", "LastModified", "mtime", "created")
_NOT_FOUND = (404, 410)
_OBJECTS = frozenset({"s3", "gs", "az", "hf", "memory"})
"""What has no folders: asking s3fs for one makes the bucket, and a typo would, too."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_WRONG_TLS = (*_NO_TLS, "CERTIFICATE_VERIFY_FAILED")
_WORTH_ANOTHER_TRY = (408, 425, 429)
T = TypeVar("T")


class FsspecClient:
    """Files below one URL."""

    def __init__(self, url: str) -> None:
        """Files at `url`, which is a folder or a file.

        Raises:
            UsageError: No installed package knows such URLs.
        """
        self.url = url.rstrip("/")
        if self.url.endswith(":"):  # what is left of s3://, which fsspec takes for a file's name
            self.url = f"{self.url}//"
        options = _http_options() if url.startswith(("http://", "https://")) else {}
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            raise UsageError(
                f"{url} needs a package that is not installed ({error}). "
                "Run: pip install 'kdcache[remote]'" + _more(url) + "."
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{url} cannot be opened: {error}. It is such as https://host/folder, "
                "hf://datasets/USER/NAME, s3://bucket/folder or file:///folder."
            ) from None
        except Exception as error:  # some file systems connect at once
            raise DataError(f"{url} cannot be reached: {error}. Check the URL.") from None
        if self._has_no_folders and not self._root.strip("/") and "memory" not in self._protocols:
            raise UsageError(
                f"{url} names no bucket or repository. It is such as {self.url}NAME/folder."
            )

    def stat(self, name: str) -> tuple[int, str] | None:
        """Size in bytes and version (etag, date) of a file below the URL; None: not there.

        Raises:
            DataError: The server cannot be reached, or does not tell the size.
        """
        try:
            info = self._with_retry(name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        if info.get("type") == "directory":
            return None
        if info.get("size") is None:
            raise DataError(f"the server does not tell the size of {self._name(name)}.")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        return int(info["size"]), version

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file as a whole, or None when it is not there."""
        if (found := self.stat(name)) is None:
            return None
        if found[0] > limit:
            raise DataError(f"{self._name(name)} has {found[0]:,} bytes, {limit:,} are the limit.")
        return self.part(name, 0, found[0], found[0])

    def part(self, name: str, begin: int, end: int, size: int) -> bytes:
        """Bytes begin..end (half open) of a file that is `size` bytes long.

        Raises:
            DataError: It cannot be read, or is gone.
        """

        def ask() -> bytes:
            data = bytes(self._fs.cat_file(self._path(name), start=begin, end=end))
            if len(data) == size and end - begin < size:  # a server without range requests
                data = data[begin:end]
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data):,} bytes came, {end - begin:,} were asked for")
            return data

        if begin == end:
            return b""
        try:
            return self._with_retry(name, ask)
        except FileNotFoundError:
            raise DataError(f"{self._name(name)} is gone. Restore it there.") from None

    def sized(self, name: str, size: int) -> bytes | None:
        """The first `size` bytes of a file; None when the file is shorter.

        Raises:
            FileNotFoundError: It is not there.
            DataError: It cannot be read.
        """

        def ask() -> bytes | None:
            data = bytes(self._fs.cat_file(self._path(name), start=0, end=size))[:size]
            if len(data) == size:
                return data
            if self._fs.info(self._path(name)).get("size") == len(data):
                return None
            raise ConnectionError(f"{len(data):,} bytes came, {size:,} were asked for")

        return self._with_retry(name, ask)

    def download(self, name: str, size: int, to: Path, done: Callable[[int], None]) -> None:
        """Write a file of `size` bytes to `to`, piece by piece.

        Args:
            name: The file below the URL.
            size: Its bytes.
            to: A temporary file; renaming it is up to the caller.
            done: Called with the number of bytes since the last call.
        """
        with to.open("wb") as file:
            for begin in range(0, size, PIECE):
                data = self.part(name, begin, min(begin + PIECE, size), size)
                file.write(data)
                done(len(data))
            file.flush()
            os.fsync(file.fileno())

    def put(self, name: str, data: bytes) -> None:
        """Write a file below the URL, whole or not at all.

        Raises:
            DataError: It cannot be written.
        """
        path = self._path(name)

        def send() -> None:
            if not self._has_no_folders:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

        try:
            self._with_retry(name, send, "write")
        except FileNotFoundError as error:
            raise DataError(f"cannot write {self._name(name)}: {error}. Check the URL.") from None

    def find(self, pattern: str) -> list[str]:
        """Names below the URL that match a glob pattern, sorted; none where none can be listed."""
        root = self._path("")
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = self._with_retry(pattern, lambda: self._fs.glob(self._path(pattern)))
        self._fs.invalidate_cache()  # what is listed now must not answer later questions
        return sorted(str(path).removeprefix(root).strip("/") for path in found)

    @property
    def _has_no_folders(self) -> bool:
        return not _OBJECTS.isdisjoint(self._protocols)

    @property
    def _protocols(self) -> list[str]:
        known_as = self._fs.protocol
        return [known_as] if isinstance(known_as, str) else list(known_as)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _name(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _with_retry(self, name: str, ask: Callable[[], T], verb: str = "read") -> T:
        """What `ask` returns, asking again when that may help."""
        pause = FIRST_PAUSE
        for attempt in range(1, TRIES + 1):
            try:
                return ask()
            except Exception as error:  # every file system of fsspec raises kinds of its own
                failure = _behind(error)
                if isinstance(failure, FileNotFoundError):
                    raise
            said = str(failure) or type(failure).__name__
            if _is_final(failure) or attempt == TRIES:
                raise DataError(
                    f"cannot {verb} {self._name(name)}: {said}, at try {attempt} of {TRIES}. "
                    f"{_advice(failure)}"
                )
            log.info("%s: %s; trying again in %.1f s", self._name(name), said, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")


def _behind(error: Exception) -> Exception:
    """What failed: fsspec calls a file "not found" when a server has a bad moment, too."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or _status(cause) in _NOT_FOUND:
        return error
    return cause if isinstance(cause, Exception) else error


def _is_final(error: Exception) -> bool:
    """Whether asking again would change nothing."""
    if isinstance(error, (PermissionError, NotImplementedError, ImportError)):
        return True
    if _lacks_credentials(error) or _reason(error) in _WRONG_TLS:
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of aiohttp, huggingface_hub or botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's; a time-out of its own is a 400
        if response.get("Error", {}).get("Code") == "RequestTimeout":
            return 408
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _reason(error: Exception) -> str:
    """OpenSSL's word for what failed, or ""."""
    return getattr(getattr(error, "os_error", error), "reason", None) or ""


def _lacks_credentials(error: Exception) -> bool:
    return type(error).__name__ == "NoCredentialsError"


def _advice(error: Exception) -> str:
    """What a user can do now."""
    if _lacks_credentials(error):
        return (
            "Log in (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile of the AWS CLI); of "
            "a public bucket, set FSSPEC_S3_ANON=true."
        )
    if _reason(error) in _NO_TLS:
        return "The server does not speak TLS: is it http:// and not https://?"
    return "Check the URL, the network and your credentials, and run the same command again."


def _http_options() -> dict[str, Any]:
    """A connection may last for ever, but not be silent: shards are large and lines are slow."""
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        return {}
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
    return {"client_kwargs": {"timeout": timeout}}


def _more(url: str) -> str:
    """The package that serves a kind of URL, where it is not in the extra."""
    packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
    package = packages.get(url.partition("://")[0])
    return f" {package}" if package else ""
