"""`kdcache push`: a cache to where others can pull it, never readable by half.

Parts first, each read here with its digests checked, and compared again where it lies (a commit of
the Hub takes whole parts); then what describes the arrays; the manifest last. Parts that are there
as they are here are not sent again, so a killed run goes on. A cache that has grown adds its
new views to the one that is there. Another cache in the place, or another part, is refused.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheIncomplete, CacheMismatch, CacheNotFound, UsageError
from cache_tools.runtime import concurrency, progress
from cache_tools.runtime.signals import StopRequest
from cache_tools.share.hub import Hub
from cache_tools.storage import atomic
from cache_tools.storage.base import Storage
from cache_tools.storage.folder import Folder
from cache_tools.storage.open import open_storage
from cache_tools.store import commits, manifest, metadata
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.manifest import Manifest

_OWN = re.compile(r"(file|local|memory)://")
"""Prefixes of URLs that are private."""
CARD = "README.md"
MARK = b"kdcache card"
"""Mark of every card of ours: only such a file is ever replaced."""


@dataclass
class PushStats:
    """Parts and bytes of a push."""

    there: int = 0
    """Parts that were there already."""
    sent: int = 0
    """Parts that were sent."""
    bytes: int = 0
    """Bytes of their chunks."""


def is_public(url: str) -> bool:
    """Return True if others may read a URL, so that a licence is required.

    Raises:
        UsageError: It is none that can be written.
    """
    _check_url(url)
    return _OWN.match(url) is None


def run(store: Cache, url: str, card: bytes | None, jobs: int = concurrency.JOBS) -> PushStats:
    """Send a cache, or what is missing of it.

    Parts that are not committed are left out. `jobs`: parts in flight at once.

    Raises:
        CacheMismatch: There is another cache, or one with another part.
        CacheDamaged: A part here is not as it was written.
        UsageError, DataError: The place cannot be written.
        KeyboardInterrupt: A signal came; what is committed stays.
    """
    _check_url(url)
    target = Hub(url) if url.startswith("hf://") else open_storage(url)
    if isinstance(target, Folder):
        atomic.sweep(target.path)
    there = None
    with contextlib.suppress(CacheNotFound):
        there = manifest.read(target)
    if there is not None and there.spec.fingerprint != store.spec.fingerprint:
        raise CacheMismatch(
            f"{url} has another cache ({there.spec.fingerprint[:19]}… against "
            f"{store.spec.fingerprint[:19]}…). Choose another URL."
        )
    stated = Manifest(store.spec, max(store.num_views, there.num_views if there else 0))
    out, result = Cache(target, stated), PushStats()
    sizes = _sizes(store)
    with StopRequest() as stop:
        todo = []
        for part, future in concurrency.run_bounded(
            lambda p: _is_there(store, out, p), sizes, jobs, stop
        ):
            result.there += future.result()
            todo += [] if future.result() else [part]
        _send(store, out, sorted(todo), sizes, result, stop, jobs)
    if stop.requested:
        raise KeyboardInterrupt
    if there is None or there.num_views < stated.num_views:
        _describe(store, target, stated)
    if card is not None:
        _write_card(target, card)
    _flush(target)
    return result


def _check_url(url: str) -> None:
    if "://" not in url:
        here = Path(url).resolve().as_uri()
        raise UsageError(f"{url} is no URL. As a folder of this machine it is {here}.")
    if url.startswith(("http://", "https://")):
        raise UsageError(
            f"{url} can be read and not written. Copy the folder to the web server, or push to "
            "hf://datasets/USER/NAME, s3://…, gs://…."
        )


def _sizes(store: Cache) -> dict[Part, int]:
    """Bytes of each committed part."""
    sizes = {
        part: sum(chunk["bytes"] for chunk in record["chunks"].values())
        for part, record in store.committed().items()
    }
    if not sizes:
        raise CacheIncomplete(f"{store.name} has no part yet. Make the cache first.")
    return sizes


def _is_there(store: Cache, out: Cache, part: Part) -> bool:
    """Return True if the target has this part; CacheMismatch when it has another one."""
    try:
        theirs = out.record(part)
    except CacheIncomplete:
        return False
    if not out.present(part):
        return False
    if theirs["chunks"] != store.record(part)["chunks"]:
        raise CacheMismatch(
            f"{part} of {out.name} is another than in {store.name}: their digests differ. What is "
            "committed is never replaced; choose another URL."
        )
    return True


def _send(
    store: Cache,
    out: Cache,
    todo: list[Part],
    sizes: dict[Part, int],
    result: PushStats,
    stop: StopRequest,
    jobs: int,
) -> None:
    def send(part: Part) -> int:
        record, chunks = store.read_chunks(part)
        sealed = commits.sealed(record)
        if isinstance(out.storage, Hub):
            out.storage.write_all({**chunks, part.record: sealed})
        else:
            out.commit(part, chunks, sealed)
        return sum(map(len, chunks.values()))

    with progress.bar("send", sum(sizes[part] for part in todo), "bytes") as advance:
        jobs = concurrency.max_in_flight(jobs, store.spec.part_bytes)
        for _, future in concurrency.run_bounded(send, todo, jobs, stop):
            size = future.result()
            result.sent, result.bytes = result.sent + 1, result.bytes + size
            advance(size)
    _flush(out.storage)


def _describe(store: Cache, target: Storage, stated: Manifest) -> None:
    """Write the sample table and the metadata of all arrays; after them, the manifest."""
    described = metadata.initial_files(store.spec, store.table, stated.num_views)
    for name, data in described.items():
        if name != manifest.NAME:
            target.write(name, data)
    _flush(target)
    target.write(manifest.NAME, described[manifest.NAME])


def _write_card(target: Storage, card: bytes) -> None:
    """Write the card, unless the target has a README of other origin."""
    write: Callable[[str, bytes], Any] = target.write
    read = target.read
    if isinstance(target, Hub):  # the Hub shows that of the repository
        write, read = target.write_top, target.read_top
    try:
        if MARK not in read(CARD, atomic.MAX_JSON):
            return
    except FileNotFoundError:
        pass
    write(CARD, card)


def _flush(target: Storage) -> None:
    if isinstance(target, Hub):
        target.flush()
