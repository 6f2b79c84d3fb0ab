"""`kdcache verify` as a function: one call, one verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime.arguments import several
from cache_tools.runtime.plugins import Plugin
from cache_tools.runtime.progress import shown
from cache_tools.store.cache import Cache
from cache_tools.verify import repair as repairs
from cache_tools.verify import verify as verifier
from cache_tools.verify.verify import Status

if TYPE_CHECKING:
    from cache_tools.data.images import ImageDataset
    from cache_tools.data.match import DatasetMatch

RECOMPUTE: Plugin[Callable[..., list[KdcacheError]]] = Plugin(
    "kdcache.checks", "recompute", "run a teacher again"
)


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of a verification: a verdict, counts and problems.

    Attributes:
        status: "ok"; else "damaged" before "mismatch" before "incomplete".
        fingerprint: Identity of the cache: "sha256:" and 64 digits.
        parts: Parts that were checked.
        images: Images whose bytes were compared with their digest.
        probes: Views that were rendered and compared with their fingerprint.
        recomputed: Views on which the teacher was run again.
        foreign: Files in the folder of the cache that belong to no array, part or record.
        mended: Repairs made before the checks, a line each.
        coverage: Match of the cache's samples with the data set; None without one.
        problems: Every problem, as the error that reading would raise.
        facts: All that `kdcache verify --json` prints.
    """

    status: Status
    fingerprint: str
    parts: int
    images: int
    probes: int
    recomputed: int
    foreign: tuple[str, ...]
    mended: tuple[str, ...]
    coverage: "DatasetMatch | None"
    problems: tuple[KdcacheError, ...]
    facts: dict[str, Any]

    def __bool__(self) -> bool:
        """Return True if nothing is wrong."""
        return self.status == "ok"


def verify(
    cache: str | Path,
    data: str | Path | None = None,
    *,
    recompute: int = 0,
    teacher: str | Path | Sequence[str | Path] = (),
    class_map: str | Path | Sequence[str | Path] = (),
    device: str | None = None,
    content_id: str = "",
    allow_partial: bool = False,
    repair: bool = False,
    source: str = "",
    progress: bool = True,
) -> VerifyResult:
    """Check every byte of a cache; with its data set, also its images and pixels.

        >>> result = kdcache.verify("digits-cache.zarr", "digits", progress=False)
        >>> result.status, result.images
        ('ok', 100)

    Args:
        cache: Folder, zip or URL of the cache.
        data: Its images; None: they are not checked.
        recompute: Number of views on which the teacher is run again.
        teacher: Teacher to run, or several, where the names in the cache alone do not find them.
        class_map: File of the teacher's class map, or one for each teacher.
        device: Device of the teacher: "cuda", "cpu"; None: a GPU if there is one.
        content_id: Content id to compare with, such as a signed one.
        allow_partial: True if the data set may lack samples and have others.
        repair: True to mend first what follows from the cache itself, from `data` or from `source`.
        source: A copy of the cache to take damaged parts of.
        progress: True for a progress bar on a terminal.

    Raises:
        UsageError: An argument that cannot be.
        CacheNotFound, CacheMismatch, CacheDamaged: There is no cache that can be opened. What is
            wrong within one is in `problems`.
    """
    if source and not repair:
        raise UsageError(
            "a copy to take damaged parts of (--from, in Python source=) goes with a repair. Pass "
            "--repair, too (in Python repair=True)."
        )
    if recompute < 0:
        raise UsageError(f"recompute={recompute} (--recompute) must be at least 0.")
    store = None if repair else Cache.open(cache)
    if recompute and data is None:
        raise UsageError(
            "to run the teacher again (--recompute, in Python recompute=), views are rendered. "
            "Pass their images, too (--data, in Python data=)."
        )
    images, mended = None, list[str]()
    with shown(progress):
        if data is not None:
            images = _open_images(store, cache, str(data))
        if store is None:
            copy = Cache.open(source) if source else None
            store, mended = repairs.repair(cache, images, copy)
        verdict = verifier.verify(store, images, allow_partial)
        verdict.mended = mended
        if recompute and images is not None and verdict.status == "ok":
            check = RECOMPUTE.load()
            verdict.recomputed = recompute
            again = several(teacher), device, recompute, several(class_map)
            verdict.problems.extend(check(store, images, *again))
    if content_id and verdict.status in ("ok", "incomplete"):
        verdict.compare_content(store, content_id)
    return VerifyResult(
        verdict.status,
        store.spec.fingerprint,
        verdict.parts,
        verdict.images,
        verdict.probes,
        verdict.recomputed,
        tuple(verdict.foreign),
        tuple(verdict.mended),
        verdict.coverage,
        tuple(verdict.problems),
        verdict.as_dict(),
    )


def _open_images(store: Cache | None, cache: str | Path, data: str) -> "ImageDataset":
    """Open the split that a cache is of; the training split where its table cannot be read."""
    from cache_tools.data import match
    from cache_tools.data.open import open_images

    try:
        store = Cache.open(cache) if store is None else store
        table = store.table
    except KdcacheError:  # repaired, or stated, by the caller
        return open_images(data, "train")
    return match.open_unordered(table, store.spec.dataset, data)
