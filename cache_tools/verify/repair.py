"""`kdcache verify --repair`: what can be mended of a cache without the command that made it.

Array metadata follow from the manifest; the sample table from the images, or from another copy of
the cache; root and parts from such a copy. Each file is written whole or not at all, a part's
chunks before its record, so that a kill leaves a cache that can be repaired again. What is left is
named by the verification that follows. Files that are not of the cache stay.
"""

from pathlib import Path

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheDamaged, CacheIncomplete, CacheMismatch, UsageError
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage import atomic
from cache_tools.storage.folder import Folder
from cache_tools.storage.open import open_storage
from cache_tools.storage.zip_folder import Zip
from cache_tools.store import commits, manifest, resume
from cache_tools.store.cache import Cache
from cache_tools.verify import verify


def repair(
    where: str | Path, images: ImageDataset | None = None, copy: Cache | None = None
) -> tuple[Cache, list[str]]:
    """Mend a cache from its images, or from a `copy` of it.

    Returns:
        The opened cache, and what was mended, a line each.

    Raises:
        CacheDamaged, CacheMismatch, CacheNotFound: The root cannot be read and there is no copy.
        CacheMismatch: The copy is of another cache.
        UsageError: The cache is a zip.
    """
    storage, done = open_storage(where), list[str]()
    if isinstance(storage, Zip):
        raise UsageError(f"{storage} is a zip, which is read only. Unpack it, and repair that.")
    if isinstance(storage, Folder) and (swept := atomic.sweep(storage.path)):
        done.append(f"{swept} temporary files of killed processes were removed")
    if copy is not None and storage.names() and resume.root(storage) is None:
        if not resume.write_root(storage, copy.spec, copy.num_views):
            resume.create(where, copy.spec, copy.table, copy.num_views)
        done.append(f"{manifest.NAME} was written again, from {copy.name}")
    store = Cache.open(where)
    if copy is not None and copy.spec.fingerprint != store.spec.fingerprint:
        raise CacheMismatch(
            f"{copy.name} is another cache than {store.name}: nothing of it is used. Pass a copy "
            "of the same one with --from."
        )
    known = copy.name if copy else images.source if images else ""

    def table() -> SampleTable:
        if copy is not None:
            return copy.table
        if images is None:
            raise CacheDamaged("its images or a copy are needed")
        return _table(store, images)

    done += [f"{name} was written again" for name in store.mend_metadata()]
    try:
        done += [f"{name} was written again" for name in store.mend(table)]
    except CacheDamaged:  # named by the verification
        done += [f"the sample table was not mended from {known}"] if known else []
    for part, fault in verify.faults(store) if copy is not None else ():
        if fault is not None and copy is not None:
            try:
                record, chunks = copy.read_chunks(part)
            except (CacheDamaged, CacheIncomplete):
                continue
            store.commit(part, chunks, commits.sealed(record))
            done.append(f"{part} was written again, from {copy.name}")
    return store, done


def _table(store: Cache, images: ImageDataset) -> SampleTable:
    """Make the sample table by reading every image."""
    from cache_tools.data import scan
    from cache_tools.runtime import progress, threads

    spec = store.spec.dataset
    _, keys, ordered = scan.in_table_order(images, spec.key)
    with progress.bar("scan images", len(keys), "images") as advance:
        return scan.scan(keys, ordered, spec.labels, threads.cpu_count(), advance)
