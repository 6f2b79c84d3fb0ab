"""Open a cache to read much of it: in place, or through the data folder when it is at a URL."""

from pathlib import Path

from cache_tools.storage.base import with_retry
from cache_tools.storage.cached import CachedStorage
from cache_tools.storage.object_store import ObjectStore
from cache_tools.storage.open import open_storage
from cache_tools.store import manifest
from cache_tools.store.cache import Cache


def open_cache(where: str | Path) -> Cache:
    """Open a cache to read much of it: one at a URL is kept on this machine as it is read."""
    remote = open_storage(where)
    if not isinstance(remote, ObjectStore):
        return Cache.open(where)
    stated = with_retry(remote, lambda: manifest.read(remote), manifest.NAME)
    return Cache(CachedStorage(remote, stated.spec.fingerprint), stated)
