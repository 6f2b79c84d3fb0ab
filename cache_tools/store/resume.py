"""Continuation of the cache that a command began: created, mended, or replaced while it is empty.

A root is believed by its digest alone. Where it is damaged or missing, the commit records beside it
have the fingerprint of the cache that they are of; the spec of the running command must have it,
too. Nothing that a part needs is ever removed, nor a file of another kind.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cache_tools.errors import CacheDamaged, CacheMismatch, CacheNotFound, UsageError
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic
from cache_tools.storage.base import Storage, with_retry
from cache_tools.storage.folder import Folder
from cache_tools.storage.open import open_storage
from cache_tools.store import commits, layout, manifest, metadata, presence
from cache_tools.store.cache import Cache
from cache_tools.store.manifest import Manifest

log = logging.getLogger("kdcache")


def open_or_create(
    where: str | Path, spec: CacheSpec, table: Callable[[], SampleTable], num_views: int
) -> Cache:
    """Open and mend the cache that a command began, or create it.

    `table` makes the sample table of a new one; there is room for at least `num_views`.

    Raises:
        UsageError: There is another cache with parts, or something else.
        CacheDamaged: The cache cannot be mended.
    """
    storage = open_storage(where)
    if isinstance(storage, Folder):
        atomic.sweep(storage.path)
    stated = root(storage)
    if stated is not None and (found := difference(stated.spec.mapping, spec.mapping)):
        if not discard_empty(storage):
            raise UsageError(
                f"{storage} is another cache: {found} now. Choose another folder for the new one, "
                "or run the command that made the one there."
            )
        stated = None
    if stated is None:
        return create(where, spec, table(), num_views)
    store = Cache(storage, stated)
    store.mend(table)
    store.resize(num_views)
    return store


def root(storage: Storage) -> Manifest | None:
    """Read the manifest of a cache; None where it is missing or damaged."""
    try:
        return with_retry(storage, lambda: manifest.read(storage), manifest.NAME)
    except (CacheNotFound, CacheDamaged, CacheMismatch):
        return None


def create(where: str | Path, spec: CacheSpec, table: SampleTable, num_views: int) -> Cache:
    """Create a cache where there is no root, or none that can be read; parts of it stay.

    Raises:
        UsageError: There is something that is not a cache.
        CacheDamaged, CacheMismatch: There are parts, of another cache or of one that is unknown.
    """
    storage = open_storage(where)
    if write_root(storage, spec, num_views):
        store = Cache.open(where)
        store.mend(lambda: table)
        return store
    if (names := storage.names() or []) and (manifest.NAME not in names or _is_damaged(storage)):
        initial = metadata.initial_files(spec, table, num_views)
        _remove_own(storage, [n for n in names if n not in initial or n == manifest.NAME])
    return Cache.create(where, spec, table, num_views)


def write_root(storage: Storage, spec: CacheSpec, num_views: int) -> bool:
    """Write the root of the parts that are there again; return False when there are none.

    Raises:
        CacheDamaged: They are of another cache, or their records are damaged, too.
    """
    names = storage.names() or []
    if not (parts := [found for name in names if (found := commits.NAME.fullmatch(name))]):
        return False
    known = commits.identity(storage, names)
    for same in (spec, *([replace(spec, renderer="kernels-1")] if spec.replayable else [])):
        if same.fingerprint == known:
            views = max(num_views, *(int(found[1]) + 1 for found in parts))
            log.warning("%s/%s was damaged or missing: it is written again", storage, manifest.NAME)
            storage.write(manifest.NAME, Manifest(same, views).encode())
            return True
    raise CacheDamaged(
        f"{storage}/{manifest.NAME} is damaged or missing, and the parts beside it "
        + ("are of another cache than this command makes" if known else "have no intact record")
        + ". Run the command that made them, fetch that file again from where the cache came, or "
        "choose another --out."
    )


def discard_empty(storage: Storage) -> bool:
    """Remove a cache without a committed part, and return True; one that has parts stays."""
    if root(storage) is None:  # a lock of it would stay
        return False
    with storage.locked():
        names = storage.names() or []
        if any(map(commits.NAME.fullmatch, names)) or root(storage) is None:
            return False
        log.info("%s has no committed part: it is removed", storage)
        _remove_own(storage, names)
        if isinstance(storage, Folder):
            path = Path(os.path.realpath(storage.path))
            with contextlib.suppress(OSError):  # a mount point stays, so does what is not ours
                path.rmdir()
                for suffix in (".source", ".lock", presence.SUFFIX):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
    return True


def _remove_own(storage: Storage, names: Sequence[str]) -> None:
    """Remove files without parts, the root first, unless one is not of a cache."""
    if all(map(layout.is_name, names)):
        storage.remove(sorted(names, key=lambda name: name != manifest.NAME))


def _is_damaged(storage: Storage) -> bool:
    """Check that a root is damaged, and none of another version or program."""
    try:
        manifest.read(storage)
    except CacheDamaged:
        return True
    except (CacheNotFound, CacheMismatch):
        pass
    return False
