"""Verification of a cache, and of its data set: a verdict, and the file that breaks it.

Without images: the manifest, the metadata other readers follow, every commit record, the SHA-256 of
every chunk, the crc32c within it and the values it holds, and that no other file is there. With
`--data`: also the key set, every image's bytes (of a `.beton`, the stored ones, pixels too), and
the pixels of the probe views of every part, rendered here and now. `--recompute` runs the teacher
again (the entry point `recompute` of the group `kdcache.checks`). Only with images is the renderer
imported, and numba with it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.data.images import ImageDataset
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    CacheMismatch,
    KdcacheError,
)
from cache_tools.runtime import progress, threads
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part

if TYPE_CHECKING:
    from cache_tools.data.match import DatasetMatch

T = TypeVar("T")
R = TypeVar("R")
Status = Literal["ok", "incomplete", "damaged", "mismatch"]
_MEMORY = 2**30
_SHOWN = 10
_AHEAD = 4096
"""Items handed out at once: their results wait in memory."""


@dataclass
class Verdict:
    """Result of a verification: counts and problems."""

    parts: int = 0
    """Parts that were checked."""
    images: int = 0
    """Images whose bytes were compared with their digest."""
    probes: int = 0
    """Views that were rendered and compared with their fingerprint."""
    recomputed: int = 0
    """Views on which the teacher was run again."""
    foreign: list[str] = field(default_factory=list)
    """Files in the folder of the cache that belong to no array, part or record."""
    mended: list[str] = field(default_factory=list)
    """Repairs made before these checks, a line each."""
    coverage: "DatasetMatch | None" = None
    """Match of the cache's samples with the data set."""
    problems: list[KdcacheError] = field(default_factory=list)
    """Every problem, in words."""

    @property
    def status(self) -> Status:
        """The verdict: damage first, then what does not belong together, then what is missing."""
        if not self.problems:
            return "ok"
        if any(isinstance(p, CacheDamaged) for p in self.problems):
            return "damaged"
        incomplete = all(isinstance(p, CacheIncomplete) for p in self.problems)
        return "incomplete" if incomplete else "mismatch"

    def compare_content(self, store: Cache, content_id: str) -> None:
        """Note it when the cache has another content id than this."""
        try:
            info.check_content(store, content_id)
        except KdcacheError as error:
            self.problems.append(error)

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for `--json`."""
        problems = [{"kind": p.kind, "message": str(p)} for p in self.problems]
        counts = {"parts": self.parts, "images": self.images, "probes": self.probes}
        counts["recomputed"] = self.recomputed
        covered = {} if self.coverage is None else {"coverage": self.coverage.facts}
        found = {"foreign": self.foreign, "mended": self.mended, "problems": problems}
        return {"verdict": self.status, **counts, **covered, **found}


def verify(store: Cache, images: ImageDataset | None = None, partial: bool = False) -> Verdict:
    """Check a cache, and its data set when one is given (any order of samples).

    `partial`: some of its samples may be missing, and others be there.
    """
    if images is not None:
        from cache_tools.verify.probes import check_replayable

        check_replayable(store)
    verdict = Verdict()
    verdict.problems.extend(store.metadata_faults())
    if foreign := store.foreign_files():
        verdict.foreign = foreign
        shown = ", ".join(foreign[:_SHOWN]) + (", …" if len(foreign) > _SHOWN else "")
        verdict.problems.append(
            CacheMismatch(
                f"{store.name} has {len(foreign):,} files that belong to no array, part or record "
                f"of it: {shown}. Nothing reads them; move them elsewhere."
            )
        )
    try:
        table = store.table
    except CacheDamaged as error:
        verdict.problems.append(error)
        return verdict
    whole = _check_parts(store, verdict)
    if images is not None:
        from cache_tools.data import match

        try:
            verdict.coverage = match.find(table, store.spec.dataset, images)
            matched, _ = match.align(table, store.spec.dataset, images, partial, verdict.coverage)
            _check_images(store, matched, whole, verdict, verdict.coverage.present_N)
        except KdcacheError as error:
            verdict.problems.append(error)
    return verdict


def faults(
    store: Cache, parts: Sequence[Part] | None = None
) -> Iterator[tuple[Part, CacheIncomplete | CacheDamaged | None]]:
    """Check the record and digests of parts (None: of all), in order, in a thread pool."""
    return _on_all_cores(store.check_part, list(store.parts()) if parts is None else parts)


def _check_parts(store: Cache, verdict: Verdict) -> list[Part]:
    """Check every part down to its values; those that are whole."""
    parts, whole = list(store.parts()), []

    def fault(part: Part) -> KdcacheError | None:
        try:
            store.read(part)
            if store.spec.imported:
                store.read_params(part)
        except (CacheDamaged, CacheIncomplete) as error:
            return error
        return None

    with progress.bar("verify parts", len(parts), "parts") as advance:
        for part, problem in _on_all_cores(fault, parts, store.spec.part_bytes):
            verdict.parts += 1
            if problem is None:
                whole.append(part)
            else:
                verdict.problems.append(problem)
            advance(1)
    return whole


def _check_images(
    store: Cache,
    images: ImageDataset,
    whole: list[Part],
    verdict: Verdict,
    present_N: NDArray[np.bool_],
) -> None:
    from cache_tools.verify.probes import check_probes

    table, rows = store.table, np.flatnonzero(present_N).tolist()

    def digest(number: int) -> None:
        images.compare(table, number)

    def pixels(part: Part) -> int:
        return check_probes(store, images, part, present_N)

    with progress.bar("verify images", len(rows), "images") as advance:
        for _ in _on_all_cores(digest, rows):
            verdict.images += 1
            advance(1)
    with progress.bar("verify views", len(whole), "parts") as advance:
        for _, count in _on_all_cores(pixels, whole):
            verdict.probes += count
            advance(1)


def _on_all_cores(
    work: Callable[[T], R], items: Sequence[T], each: int = 1
) -> Iterator[tuple[T, R]]:
    """Items with what `work` makes of them, in order, by one thread per core.

    Fewer threads when `each` takes so many bytes that all together would take a gigabyte.
    """
    pool = ThreadPoolExecutor(max(1, min(threads.cpu_count(), _MEMORY // each)))
    try:
        for begin in range(0, len(items), _AHEAD):
            batch = items[begin : begin + _AHEAD]
            yield from zip(batch, pool.map(work, batch), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
