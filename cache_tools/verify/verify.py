"""Is this cache whole, and is it of this data set? A verdict, and the file that breaks it.

Without images: the manifest, the metadata other readers follow, every commit record, the SHA-256 of
every chunk, the crc32c within it and the values it holds. With `--data`: also the key set, every
image's bytes, and the pixels of the probe views of every part, rendered here and now. `--recompute`
asks the teacher again (whoever offers an entry point `recompute` in `kdcache.checks` does).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.match import DatasetMatch
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    CacheMismatch,
    KdcacheError,
    UsageError,
)
from cache_tools.render import view as render
from cache_tools.runtime import progress, threads
from cache_tools.spec import sample_table
from cache_tools.store import info, view_params
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.views.draw import ViewParams

T = TypeVar("T")
R = TypeVar("R")
Word = Literal["ok", "incomplete", "damaged", "mismatch"]
_MEMORY = 2**30
_AHEAD = 4096
"""Items handed out at once: their results wait in memory."""


@dataclass
class Verdict:
    """What was looked at and what was found."""

    parts: int = 0
    """Parts that were checked."""
    images: int = 0
    """Images whose bytes were compared with their digest."""
    probes: int = 0
    """Views that were rendered and compared with their fingerprint."""
    recomputed: int = 0
    """Views the teacher was asked about again."""
    coverage: DatasetMatch | None = None
    """Where the cache's samples are in the data set."""
    problems: list[KdcacheError] = field(default_factory=list)
    """Every problem, in words."""

    @property
    def word(self) -> Word:
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
        """The verdict for `--json`."""
        problems = [{"kind": p.kind, "message": str(p)} for p in self.problems]
        counts = {"parts": self.parts, "images": self.images, "probes": self.probes}
        counts["recomputed"] = self.recomputed
        covered = {} if self.coverage is None else {"coverage": self.coverage.facts}
        return {"verdict": self.word, **counts, **covered, "problems": problems}


def verify(store: Cache, images: ImageDataset | None = None, partial: bool = False) -> Verdict:
    """Check a cache, and its data set when one is given (any order of samples).

    Args:
        store: The cache.
        images: Its data set.
        partial: Whether some of its samples may be missing, and others be there.
    """
    if images is not None:
        check_replayable(store)
    verdict = Verdict()
    verdict.problems.extend(store.metadata_faults())
    try:
        table = store.table
    except CacheDamaged as error:
        verdict.problems.append(error)
        return verdict
    whole = _check_parts(store, verdict)
    if images is not None:
        try:
            verdict.coverage = match.find(table, store.spec.dataset, images)
            matched, _ = match.align(table, store.spec.dataset, images, partial, verdict.coverage)
            _check_images(store, matched, whole, verdict, verdict.coverage.present_N)
        except KdcacheError as error:
            verdict.problems.append(error)
    return verdict


def check_replayable(store: Cache) -> None:
    """UsageError when nobody knows which pixels the targets of this cache are of."""
    if not store.spec.replayable:
        raise UsageError(
            f"{store.name} was imported from logits: nobody knows which pixels they are of, so "
            "there is nothing to render. It can be verified without --data, compared and read."
        )


def faults(store: Cache) -> Iterator[tuple[Part, CacheIncomplete | CacheDamaged | None]]:
    """Every part with what its record and digests say, in order, read by a thread pool."""
    return _on_all_cores(store.check_part, list(store.parts()))


def check_probes(
    store: Cache, images: ImageDataset, part: Part, present_N: NDArray[np.bool_] | None = None
) -> int:
    """Render the probe views of one part and compare their pixels; how many.

    Of a part that was cut by samples not all fingerprints are known, or none.

    Args:
        store: The cache.
        images: The data set in the order of its table.
        part: Which part.
        present_N: Which samples it has; None: all.

    Raises:
        CacheMismatch: A picture differs from what the teacher saw; names both sides' libraries.
    """
    _, fingerprints = store.read(part)
    numbers = probe_numbers(store.spec.rows(part.block))
    known = [pair for pair in zip(numbers, fingerprints, strict=True) if pair[1]]
    if present_N is not None:
        known = [pair for pair in known if present_N[pair[0]]]
    if not known:
        return 0
    params = view_params.parameters(store, part.view, np.array([number for number, _ in known]))
    for at, (number, expected) in enumerate(known):
        if fingerprint(store, images, number, params, at) != int(expected):
            raise CacheMismatch(
                f"view {part.view} of {store.table.keys[number]!r} has other pixels here than the "
                f"teacher saw. The cache was made with {store.record(part)['versions']}, here are "
                f"{render.versions()}. Install the versions the cache was made with."
            )
    return len(known)


def probe(store: Cache, images: ImageDataset, number: int, view: int) -> int:
    """Fingerprint of the pixels of one view, rendered here and now."""
    params = view_params.parameters(store, view, np.array([number]))
    return fingerprint(store, images, number, params, 0)


def fingerprint(
    store: Cache, images: ImageDataset, number: int, params: ViewParams, at: int
) -> int:
    """Fingerprint of the pixels of one view whose parameters are known.

    Args:
        store: The cache.
        images: The data set in the order of its table.
        number: Row of the sample.
        params: Parameters of some views.
        at: Which of them.
    """
    renderer = ViewRenderer(images, store.spec.views, store.table, stored_pixels=True)
    return render.fingerprint(renderer.render_one(number, params, at))


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
    table, rows = store.table, np.flatnonzero(present_N).tolist()

    def digest(number: int) -> None:
        sample_table.check_digest(table, number, images.read(number))

    def pixels(part: Part) -> int:
        return check_probes(store, images, part, present_N)

    with progress.bar("verify images", len(rows) + len(whole), "images and parts") as advance:
        for _ in _on_all_cores(digest, rows):
            verdict.images += 1
            advance(1)
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
