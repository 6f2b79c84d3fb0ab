"""Read and write files at a URL through fsspec, with retries and checked lengths.

fsspec has http(s), hf, s3, gs, memory and more by the beginning of a URL, each with exceptions of
its own. Here they are of two kinds: those that a retry cannot change (not found, forbidden), and
all others, which are retried TRIES times with growing pauses.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cache_tools.errors import DataError, UsageError
from cache_tools.runtime.secrets import redact

log = logging.getLogger("kdcache")
TRIES = 7
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second try, and the most that the pause doubles to."""
PIECE = 2**24
"""Bytes of one request of a download: those that a lost connection costs."""
_CONNECT = 30.0
"""Seconds to connect."""
_VERSIONS = ("ETag", "etag", "md5", "blob_id", "Last-Modified", "LastModified", "mtime", "created")
_NOT_FOUND = (404, 410)
_OBJECTS = frozenset({"s3", "gs", "az", "hf", "memory"})
"""Protocols without folders: makedirs of s3fs creates the bucket, even a misspelt one."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_WRONG_TLS = (*_NO_TLS, "CERTIFICATE_VERIFY_FAILED")
_REFUSED = ("RefusedResponse", "TooManyRedirects", "RedirectClientError")
"""Ends of the names of errors of aiohttp that depend on the server's response alone."""
_REASONS = {
    "TooManyRedirects": "its redirects do not end",
    "RedirectClientError": "it redirects to what is no http(s) URL",
    "TimeoutError": "no response in time",
}
"""Reasons of errors whose own text is none, by the end of their name."""
_HUB = ("GatedRepoError", "RepositoryNotFoundError")
"""Errors of huggingface_hub for a repository without access; the first is one of the second."""
_CAUSES = 8
"""Links of a chain of causes that are looked at."""
_NO_NETWORK = (errno.ENETUNREACH, errno.ENETDOWN)
_RETRIED = (408, 425, 429)
T = TypeVar("T")
OnProgress = Callable[[int], None]


def split_query(url: str) -> tuple[str, str]:
    """Split a web address into its path and its query; the query of a signed one goes with all."""
    if not url.startswith(("http://", "https://")):
        return url, ""
    path, mark, query = url.partition("#")[0].partition("?")
    return path, mark + query


def without_secrets(url: str) -> str:
    """Remove user, password and query from a URL, for texts and files that others may read."""
    return redact(url) if "://" in url else url


class FsspecClient:
    """Files below one URL."""

    def __init__(self, url: str) -> None:
        """Open `url`, a folder or a file.

        Raises:
            UsageError: No installed package opens such URLs.
        """
        path, self._query = split_query(url)
        self._answered = False
        path = path.rstrip("/")
        self.url = without_secrets(path)
        """The URL without user, password and query: for messages, and the identity of files."""
        self.location = path + self._query
        """The URL with all it came with, to open it again: never for texts."""
        if path.endswith(":"):  # what is left of s3://, which fsspec would read as a file name
            path = self.url = f"{path}//"
        options = _http_options() if url.startswith(("http://", "https://")) else {}
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(path, **options)
        except ImportError as error:
            raise UsageError(
                f"{self.url} needs a package that is not installed ({error}). "
                "Run: pip install 'kdcache[remote]'" + _extra_package(url) + "."
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{self.url} cannot be opened: {error}. It is such as https://host/folder, "
                "hf://datasets/USER/NAME, s3://bucket/folder or file:///folder."
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # some file systems connect at once
            raise DataError(f"{self.url} cannot be reached: {error}. Check the URL.") from None
        if self._has_no_folders and not self._root.strip("/") and "memory" not in self._protocols:
            raise UsageError(
                f"{self.url} names no bucket or repository. It is such as {self.url}NAME/folder."
            )

    def stat(self, name: str) -> tuple[int, str] | None:
        """Return size in bytes and version (etag, date) of a file below the URL, or None.

        Raises:
            DataError: The server cannot be reached, or sends no size.
        """
        try:
            info = self._with_retry(name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        if info.get("type") == "directory":
            return None
        if info.get("size") is None:
            raise DataError(
                f"the server sends no size of {self._name(name)}: it compresses the file, or makes "
                "it anew. Serve a folder of plain files, with a Content-Length, or copy it here."
            )
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        return int(info["size"]), version

    def read(self, name: str, limit: int) -> bytes | None:
        """Read a small file as a whole; return None when there is none."""
        if (found := self.stat(name)) is None:
            return None
        if found[0] > limit:
            raise DataError(f"{self._name(name)} has {found[0]:,} bytes, {limit:,} are the limit.")
        return self.part(name, 0, found[0], found[0])

    def part(self, name: str, begin: int, end: int, size: int) -> bytes:
        """Read bytes begin..end (half open) of a file that is `size` bytes long.

        Raises:
            DataError: It cannot be read, or is gone.
        """

        def fetch() -> bytes:
            data = bytes(self._fs.cat_file(self._path(name), start=begin, end=end))
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data):,} bytes came, {end - begin:,} were requested")
            return data

        if begin == end:
            return b""
        try:
            return self._with_retry(name, fetch)
        except FileNotFoundError:
            raise DataError(f"{self._name(name)} is gone. Restore it there.") from None

    def sized(self, name: str, size: int) -> bytes | None:
        """Read the first `size` bytes of a file; return None when the file is shorter.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: It cannot be read.
        """

        def fetch() -> bytes | None:
            data = bytes(self._fs.cat_file(self._path(name), start=0, end=size))[:size]
            if len(data) == size:
                return data
            if self._fs.info(self._path(name)).get("size") == len(data):
                return None
            raise ConnectionError(f"{len(data):,} bytes came, {size:,} were requested")

        return self._with_retry(name, fetch)

    def download(self, name: str, size: int, to: Path, on_progress: OnProgress) -> None:
        """Write a file of `size` bytes to the temporary file `to`, piece by piece.

        `on_progress` is called with the number of bytes since the last call.
        """
        with to.open("wb") as file:
            for begin in range(0, size, PIECE):
                data = self.part(name, begin, min(begin + PIECE, size), size)
                file.write(data)
                on_progress(len(data))
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
        """List names below the URL that match a glob pattern, sorted; none from plain HTTP."""
        root = self._root.rstrip("/")
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = self._with_retry(pattern, lambda: self._fs.glob(f"{root}/{pattern}"))
        self._fs.invalidate_cache()  # later calls must not be answered from this listing
        return sorted(str(path).removeprefix(root).strip("/") for path in found)

    def names(self) -> list[str] | None:
        """List every file below the URL, sorted; None where files cannot be listed (plain HTTP)."""
        if not {"http", "https"}.isdisjoint(self._protocols):
            return None
        self._fs.invalidate_cache()
        root = self._root.rstrip("/")
        try:
            found = self._with_retry("", lambda: self._fs.find(root))
        except FileNotFoundError:
            return []
        return sorted(str(path).removeprefix(root).strip("/") for path in found)

    def delete(self, name: str) -> None:
        """Delete a file below the URL, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._with_retry(name, lambda: self._fs.rm_file(self._path(name)), "delete")

    @property
    def _has_no_folders(self) -> bool:
        return not _OBJECTS.isdisjoint(self._protocols)

    @property
    def _protocols(self) -> list[str]:
        known_as = self._fs.protocol
        return [known_as] if isinstance(known_as, str) else list(known_as)

    def _path(self, name: str) -> str:
        return (f"{self._root.rstrip('/')}/{name}" if name else self._root) + self._query

    def _name(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _with_retry(self, name: str, request: Callable[[], T], verb: str = "read") -> T:
        """Return the result of `request`, with retries when they may help."""
        pause = FIRST_PAUSE
        for attempt in range(1, TRIES + 1):
            try:
                result = request()
                self._answered = True
                return result
            except MemoryError:
                raise
            except Exception as error:  # every file system of fsspec raises kinds of its own
                failure = _cause(error)
                if isinstance(failure, FileNotFoundError):
                    raise
            reason = _text(failure)
            # a name that was found before is looked up again: the network fails, not the URL
            unknown = not self._answered and _is_unknown_host(failure)
            if _is_final(failure) or unknown or attempt == TRIES:
                raise DataError(
                    f"cannot {verb} {self._name(name)}: {reason}, at try {attempt} of {TRIES}. "
                    f"{_advice(failure, self.url)}"
                )
            log.info("%s: %s; trying again in %.1f s", self._name(name), reason, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")


def _text(error: Exception) -> str:
    """Return the reason for an error in words."""
    kind = type(error).__name__
    for end, reason in _REASONS.items():
        if kind.endswith(end) and not (end == "TimeoutError" and str(error)):
            return reason
    return str(error) or kind


def _cause(error: Exception) -> Exception:
    """Return the real cause: fsspec raises "not found" for a failing server, too."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or _status(cause) in _NOT_FOUND:
        return error
    return cause if isinstance(cause, Exception) else error


def _is_final(error: Exception) -> bool:
    """Return True if a retry would change nothing."""
    if isinstance(error, (PermissionError, NotImplementedError, ImportError)):
        return True
    if _lacks_credentials(error) or _reason(error) in _WRONG_TLS or _is_offline(error):
        return True
    if type(error).__name__.endswith(_REFUSED):
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _RETRIED


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error of aiohttp, huggingface_hub or botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's; a time-out of its own is a 400
        if response.get("Error", {}).get("Code") == "RequestTimeout":
            return 408
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _reason(error: Exception) -> str:
    """Return OpenSSL's reason for a failure, or ""."""
    return getattr(getattr(error, "os_error", error), "reason", None) or ""


def _is_offline(error: Exception) -> bool:
    """Return True in the Hub's offline mode (HF_HUB_OFFLINE), or where there is no network."""
    return any(
        any(kind.__name__ == "OfflineModeIsEnabled" for kind in type(each).__mro__)
        or getattr(each, "errno", None) in _NO_NETWORK
        for each in _causes(error)
    )


def _is_unknown_host(error: Exception) -> bool:
    """Return True if the name of a host could not be looked up."""
    return any(isinstance(each, socket.gaierror) for each in _causes(error))


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error with its causes, some of which libraries keep in attributes of their own."""
    found: list[BaseException] = [error]
    for each in found:
        inner = each.__cause__, each.__context__, getattr(each, "os_error", None), *each.args
        found += [one for one in inner if isinstance(one, BaseException) and one not in found]
        if len(found) > _CAUSES:
            break
    return found


def _lacks_credentials(error: Exception) -> bool:
    return type(error).__name__ == "NoCredentialsError"


def _advice(error: Exception, url: str) -> str:
    """Return the next step for the user."""
    if kind := {kind.__name__ for kind in type(error).__mro__} & {*_HUB}:
        return _hub_advice(kind, url)
    if _lacks_credentials(error):
        return (
            "Log in (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile of the AWS CLI); of "
            "a public bucket, set FSSPEC_S3_ANON=true."
        )
    if _is_offline(error):
        return "There is no network, or HF_HUB_OFFLINE is set. Use a local copy, or unset it."
    if _is_unknown_host(error):
        return "No host of this name is found: check its spelling and the network's DNS."
    if _reason(error) in _NO_TLS:
        return "The server has no TLS: is it http:// and not https://?"
    return "Check the URL, the network and your credentials, and run the same command again."


def _hub_advice(kinds: set[str], url: str) -> str:
    """Return the next step where the Hub refuses a repository: its terms, or a token."""
    from huggingface_hub import constants, get_token

    parts = url.partition("://")[2].split("/")
    name = "/".join(parts[: 3 if parts[0] in ("datasets", "spaces") else 2]).partition("@")[0]
    page = f"{constants.ENDPOINT}/{name}"
    if _HUB[0] in kinds:
        advice = f"It is gated: accept its terms at {page}, once, with your account. "
    else:
        advice = f"There is no such repository, or it is private: look at {page}. "
    if get_token():
        return advice + (
            "The token that is set (HF_TOKEN, or hf auth login) must be of an account with access "
            "and, if fine-grained, be allowed to read gated repositories."
        )
    return advice + (
        f"No token is set: make one at {constants.ENDPOINT}/settings/tokens, and run hf auth login "
        "or set HF_TOKEN."
    )


def _http_options() -> dict[str, Any]:
    """Bound the bytes and the time of a response; shards are large, networks slow."""
    try:
        from aiohttp import ClientTimeout

        from cache_tools.storage.bounded_http import SILENCE, BoundedResponse
    except ImportError:
        return {}
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=SILENCE)
    client = {"timeout": timeout, "response_class": BoundedResponse, "trust_env": True}
    return {"client_kwargs": client}  # trust_env: proxies, and passwords from ~/.netrc


def _extra_package(url: str) -> str:
    """Name the package for a kind of URL that the extra lacks."""
    packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
    package = packages.get(url.partition("://")[0])
    return f" {package}" if package else ""
