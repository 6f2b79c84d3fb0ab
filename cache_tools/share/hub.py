"""A cache in a data set repository of the Hub: written in few commits, read like any URL.

Its file system for fsspec makes a commit of every file, which a repository of thousands does not
take. Here files wait until there are many, and go in one commit of huggingface_hub, which uploads
large ones apart, a second time not at all, and compares their SHA-256.
"""

import re
import threading
from collections.abc import Mapping
from typing import Any

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.storage import fsspec_client
from cache_tools.storage.base import MAX_FILE
from cache_tools.storage.object_store import ObjectStore

MOST_FILES, MOST_BYTES = 700, 2**28
"""Of one commit."""
_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")


class Hub(ObjectStore):
    """A folder of a data set repository."""

    def __init__(self, url: str) -> None:
        """Parse the folder hf://datasets/USER/NAME[@REVISION][/FOLDER].

        Raises:
            UsageError: The URL is another.
        """
        found = _URL.fullmatch(url.rstrip("/"))
        if not found:
            raise UsageError(f"{url} is no data set on the Hub: hf://datasets/USER/NAME[/FOLDER].")
        super().__init__(url)
        self._repo, self._revision = found[1], found[2]
        self._folder = f"{found[3]}/" if found[3] else ""
        self._top = fsspec_client.FsspecClient(url.removesuffix(f"/{found[3]}"))
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def write(self, name: str, data: bytes) -> None:  # noqa: D102 - Storage
        self.write_all({name: data})

    def write_all(self, data_of: Mapping[str, bytes]) -> None:
        """Write files of which readers see all or none."""
        self._add({self._folder + name: data for name, data in data_of.items()})

    def write_top(self, name: str, data: bytes) -> None:
        """Write a file of the repository itself."""
        self._add({name: data})

    def read_top(self, name: str, limit: int = MAX_FILE) -> bytes:
        """Bytes of a file of the repository itself."""
        if (data := self._top.read(name, limit)) is None:
            raise FileNotFoundError(name)
        return data

    def flush(self) -> None:
        """Commit what waits.

        Raises:
            KdcacheError: The Hub does not take it.
        """
        with self._lock:
            self._commit()

    def _add(self, data_of: Mapping[str, bytes]) -> None:
        with self._lock:
            self._waiting |= data_of
            size = sum(map(len, self._waiting.values()))
            if size >= MOST_BYTES or len(self._waiting) >= MOST_FILES:
                self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        from huggingface_hub import CommitOperationAdd, HfApi

        api: Any = HfApi()
        adds = [CommitOperationAdd(name, data) for name, data in self._waiting.items()]
        try:
            api.create_repo(self._repo, repo_type="dataset", exist_ok=True)
            api.create_commit(
                self._repo,
                adds,
                commit_message=f"kdcache push: {len(adds)} files",
                repo_type="dataset",
                revision=self._revision,
            )
        except Exception as error:  # the Hub's client raises many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise KdcacheError(
                f"the Hub did not take {self._repo} ({reason}). Check the network, the name "
                "USER/NAME and the token (hf auth login, or HF_TOKEN), and run the same command "
                "again."
            ) from None
        self._waiting = {}
