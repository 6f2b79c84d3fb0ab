"""Open a cache to read much of it: in place, or through the data folder when it is at a URL."""

from pathlib import Path

from cache_tools.storage.backends import Remote, checked, place
from cache_tools.storage.cached import Kept
from cache_tools.store import manifest
from cache_tools.store.cache import Store


def open_cache(where: str | Path) -> Store:
    """Open a cache to read much of it: one at a URL is kept on this machine as it is read."""
    remote = place(where)
    if not isinstance(remote, Remote):
        return Store.open(where)
    stated = checked(remote, lambda: manifest.read(remote), manifest.NAME)
    return Store(Kept(remote, stated.spec.fingerprint), stated)
