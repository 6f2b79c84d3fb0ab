"""Ensembles of caches: check that caches of several teachers are aligned, and read them as one.

Targets can be mixed only where they are of the same pixels: the same samples in the same order, the
same draws, the same renderer, the same classes. That is compared field by field and image by image;
the first difference is named. What may differ is the teacher, its precision and the size at which
it saw the views, and how and how many classes are kept.

Members are sorted by the fingerprints of their caches: the order in which a user names them enters
neither an identity nor the last bit of a sum.

Shapes: B views, N samples, P labels of a view.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.runtime.arguments import listed
from cache_tools.runtime.text import counted
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.teacher import MAX_MEMBERS, MemberSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.open import open_cache
from cache_tools.targets import codec
from cache_tools.targets.codec import DecodedTargets, EncodedTargets
from cache_tools.targets.mixture import Mixture, Tail, common_temperatures
from cache_tools.views.imported import ImportedViews

log = logging.getLogger("kdcache")
_COLUMNS = ("digest", "label", "height", "width", "bytes")
_SAMPLED = 1024


@dataclass(frozen=True)
class CacheEnsemble:
    """Aligned caches and their shares; a single one is an ensemble of itself."""

    caches: tuple[Cache, ...]
    """By ascending fingerprint; samples and views are equal in all."""
    weights: tuple[float, ...]
    """Positive; they add up to 1."""

    @property
    def reference(self) -> Cache:
        """Cache from which samples and views are read."""
        return self.caches[0]

    @property
    def num_views(self) -> int:
        """Number of views present in all of them."""
        return min(store.num_views for store in self.caches)

    @property
    def num_labels(self) -> int:
        """Labels of a view that some member stores the probability of, P."""
        return max(store.spec.num_labels for store in self.caches)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures at which every member stores the tail mass."""
        if len(self.caches) == 1:
            return self.reference.spec.targets.temperatures
        return common_temperatures([store.spec.targets for store in self.caches])

    @property
    def source(self) -> str:
        """Path or URL of the images on this machine, or ""."""
        return next((store.source for store in self.caches if store.source), "")

    @property
    def specs(self) -> tuple[MemberSpec, ...]:
        """The members as the manifest of their ensemble names them."""
        return tuple(
            MemberSpec(t.name, t.architecture, t.weights_sha256, store.spec.fingerprint, weight)
            for store, weight in zip(self.caches, self.weights, strict=True)
            for t in [store.spec.teacher]
        )

    def mixture(self, tail: Tail = "uniform") -> Mixture:
        """Build the mixture of these caches' targets."""
        specs = [store.spec.targets for store in self.caches]
        return Mixture(self.weights, specs, self.reference.spec.teacher.num_classes, tail)

    def params(self, part: Part) -> ImportedViews | None:
        """Parameters of the imported views of a part, None where views are drawn.

        Raises:
            CacheMismatch: The members have others.
        """
        if self.reference.spec.imported is None:
            return None
        first = self.reference.read_params(part)
        for other in self.caches[1:]:
            if not first.equals(other.read_params(part)):
                raise CacheMismatch(
                    f"{part} of {self.reference.name} and of {other.name} has different boxes. "
                    "Only caches of the same views can be mixed."
                )
        return first

    def sample(self, view: int = 0, block: int = 0) -> DecodedTargets:
        """Read targets of up to 1,024 views of a part; of several caches the block must be 0.

        Raises:
            CacheIncomplete, CacheDamaged: The part cannot be read.
        """
        part = Part(view, block)
        rows = min(len(store.spec.rows(block)) for store in self.caches)
        each = [store.read(part)[0] for store in self.caches]
        decoded = self.decode(each, np.arange(min(rows, _SAMPLED)))
        return decoded[0] if len(each) == 1 else self.mixture()(decoded)

    def decode(
        self, stored: Sequence[EncodedTargets], row_B: NDArray[np.int64]
    ) -> list[DecodedTargets]:
        """Decode some rows of each cache's encoded targets."""
        pairs = zip(stored, self.caches, strict=True)
        return [codec.decode(one, store.spec.targets, row_B) for one, store in pairs]


def open_ensemble(
    caches: Sequence[str | Path], weights: Sequence[float] | None = None, blocks: bool = False
) -> CacheEnsemble:
    """Open caches as one ensemble.

    Args:
        caches: Paths or URLs.
        weights: A positive number for each; only their ratios count. None weighs all alike.
        blocks: True if their parts must hold the same rows.

    Raises:
        UsageError: Weights that cannot be, or one cache twice.
        CacheMismatch: They are not of the same views of the same samples, or of other classes.
    """
    shares = _shares(caches, weights)
    opened = [open_cache(cache) for cache in caches]
    pairs = sorted(zip(opened, shares, strict=True), key=lambda pair: pair[0].spec.fingerprint)
    for (a, _), (b, _) in pairwise(pairs):
        if a.spec.fingerprint == b.spec.fingerprint:
            raise UsageError(
                f"{a.name} and {b.name} are the same cache ({a.spec.fingerprint[:19]}…). Name each "
                "teacher's cache once; its weight sets its share."
            )
    for other in opened[1:]:
        check_aligned(opened[0], other, blocks)
    members = CacheEnsemble(tuple(store for store, _ in pairs), tuple(share for _, share in pairs))
    if len(opened) > 1 and not members.reference.spec.replayable:
        log.warning(
            "these caches were imported: it cannot be checked that they are of the same views"
        )
    if len({store.num_views for store in opened}) > 1:
        views = counted(members.num_views, "view")
        log.info("%s used, the first of each cache: not every cache has more", views)
    return members


def check_aligned(a: Cache, b: Cache, blocks: bool = False) -> None:
    """Raise CacheMismatch, naming the first difference, unless two caches are of the same views."""
    found = next(_differences(a, b, blocks), None)
    if found is not None:
        raise CacheMismatch(
            f"{a.name} and {b.name} cannot be mixed: {found}. Targets can be mixed only when they "
            "are of the same views of the same images and of the same classes; make one of the "
            "caches anew with the recipe and the data of the other, and its own teacher."
        )


def _shares(caches: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if not 1 <= len(caches) <= MAX_MEMBERS:
        raise UsageError(f"{len(caches)} caches cannot be mixed; it can be 1 to {MAX_MEMBERS}.")
    given = listed("weights", weights, "one for each cache")
    try:
        weights = [float(weight) for weight in given] or [1.0] * len(caches)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"weights={given!r} are no numbers. Pass one for each cache.") from None
    if len(weights) != len(caches):
        raise UsageError(
            f"there are {len(caches)} caches and {len(weights)} weights. Give each cache one, in "
            "the same order, or none at all."
        )
    wrong = [w for w in weights if not (math.isfinite(w) and w > 0)]
    if wrong:
        raise UsageError(f"the weight {wrong[0]} cannot be: weights are positive numbers.")
    total = math.fsum(weights)
    return [w / total for w in weights]


def _differences(a: Cache, b: Cache, blocks: bool) -> Iterator[str]:
    """Every difference that forbids a mixture, in words."""
    if a.spec.dataset.table_sha256 != b.spec.dataset.table_sha256:
        yield from _table_differences(a.table, b.table)
    if found := difference(_identity(a.spec), _identity(b.spec)):
        yield found
    if blocks and a.spec.block_size != b.spec.block_size:
        yield f"block_size: {a.spec.block_size} against {b.spec.block_size}"


def _identity(spec: CacheSpec) -> dict[str, Any]:
    """Select the fields that must be equal: those that define the pixels and the classes.

    Not so `teacher_size`: the student sees the same pixels, whatever size the teacher saw them at.
    """
    return {
        "dataset": asdict(spec.dataset),
        "views": asdict(replace(spec.views, teacher_size=0)),
        "window": spec.window,
        "renderer": spec.renderer,
        "imported": asdict(spec.imported) if spec.imported else None,
        "teacher": {"num_classes": spec.teacher.num_classes},
    }


def _table_differences(a: SampleTable, b: SampleTable) -> Iterator[str]:
    """Describe how two sample tables differ, by name of the first sample."""
    if a.keys != b.keys:
        only_a, only_b = sorted(set(a.keys) - set(b.keys)), sorted(set(b.keys) - set(a.keys))
        first = f"{only_a[0]!r} is not in the second" if only_a else f"{only_b[0]!r} is new in it"
        yield f"they are of {len(a):,} and {len(b):,} samples, and {first}"
        return
    for column in _COLUMNS:
        ours, theirs = getattr(a, f"{column}_N"), getattr(b, f"{column}_N")
        differ = np.flatnonzero(ours != theirs)
        if len(differ):
            row = int(differ[0])
            yield (
                f"the {column} of {len(differ)} of {len(a):,} images differs (first: "
                f"{a.keys[row]!r}, {ours[row]} against {theirs[row]})"
            )
