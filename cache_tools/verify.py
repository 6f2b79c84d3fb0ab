"""Is this cache whole, and is it of this data set? A verdict, and the file that breaks it.

Without images: the manifest, the metadata other readers follow, every commit record, the SHA-256 of
every chunk and the values in it. With `--data`: also the key set, every image's bytes, and the
pixels of the probe views of every part, rendered here and now.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache_tools import codec, progress, render, samples, threads, views
from cache_tools.commits import Part
from cache_tools.errors import CacheDamaged, CacheIncomplete, CacheMismatch, KdcacheError
from cache_tools.shards import Images
from cache_tools.store import Store, probe_numbers


@dataclass
class Verdict:
    """What was looked at and what was found."""

    parts: int = 0
    """Parts that were checked."""
    images: int = 0
    """Images whose bytes were compared with their digest."""
    probes: int = 0
    """Views that were rendered and compared with their fingerprint."""
    problems: list[KdcacheError] = field(default_factory=list)
    """Every problem, in words."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The verdict for `--json`."""
        problems = [{"kind": p.kind, "message": str(p)} for p in self.problems]
        counts = {"parts": self.parts, "images": self.images, "probes": self.probes}
        return {"ok": self.ok, **counts, "problems": problems}


def verify(store: Store, images: Images | None = None) -> Verdict:
    """Check a cache, and its data set when one is given (any order of samples)."""
    verdict = Verdict()
    if (fault := store.metadata_fault()) is not None:
        verdict.problems.append(fault)
    try:
        table = store.table
    except CacheDamaged as error:
        verdict.problems.append(error)
        return verdict
    _check_parts(store, verdict)
    if images is not None and verdict.ok:
        try:
            _check_images(store, samples.match(table, store.spec.dataset, images), verdict)
        except KdcacheError as error:
            verdict.problems.append(error)
    return verdict


def faults(store: Store) -> Iterator[tuple[Part, CacheIncomplete | CacheDamaged | None]]:
    """Every part with what its record and digests say, in order, read by a thread pool."""
    parts = list(store.parts())
    with ThreadPoolExecutor(min(8, threads.available())) as pool:
        yield from zip(parts, pool.map(store.fault, parts), strict=True)


def check_probes(store: Store, images: Images, part: Part) -> int:
    """Render the probe views of one part and compare their pixels; how many.

    Args:
        store: The cache.
        images: The data set in the order of its table.
        part: Which part.

    Raises:
        CacheMismatch: A picture differs from what the teacher saw; names both sides' libraries.
    """
    _, fingerprints = store.read(part)
    numbers = probe_numbers(store.spec.rows(part.block))
    for number, expected in zip(numbers, fingerprints, strict=True):
        if probe(store, images, number, part.view) != int(expected):
            raise CacheMismatch(
                f"view {part.view} of {store.table.keys[number]!r} has other pixels here than the "
                f"teacher saw. The cache was made with {store.record(part)['versions']}, here are "
                f"{render.versions()}. Install the versions the cache was made with."
            )
    return len(numbers)


def probe(store: Store, images: Images, number: int, view: int) -> int:
    """Fingerprint of the pixels of one view, rendered here and now."""
    spec, table = store.spec.views, store.table
    data = images.read(number)
    samples.check_digest(table, number, data)
    one = slice(number, number + 1)
    params = views.draw(spec, table.id_N[one], table.height_N[one], table.width_N[one], view)
    out = np.empty((spec.size, spec.size, 3), dtype=np.uint8)
    render.views_of(data, table.keys[number], spec, [(params, 0, out)])
    return render.fingerprint(out)


def _check_parts(store: Store, verdict: Verdict) -> None:
    parts = list(store.parts())
    with progress.bar("verify parts", len(parts), "parts") as advance:
        for part, fault in faults(store):
            verdict.parts += 1
            problem = fault or _check_values(store, part)
            if problem is not None:
                verdict.problems.append(problem)
            advance(1)


def _check_values(store: Store, part: Part) -> CacheDamaged | None:
    try:
        stored, _ = store.read(part)
    except CacheDamaged as error:
        return error
    wrong = codec.check(stored, store.spec.teacher.num_classes)
    return CacheDamaged(f"{part} of {store.path} holds {wrong}.") if wrong else None


def _check_images(store: Store, images: Images, verdict: Verdict) -> None:
    table, parts = store.table, list(store.parts())
    with progress.bar("verify images", len(table) + len(parts), "images and parts") as advance:
        for number in range(len(table)):
            samples.check_digest(table, number, images.read(number))
            verdict.images += 1
            advance(1)
        for part in parts:
            verdict.probes += check_probes(store, images, part)
            advance(1)
