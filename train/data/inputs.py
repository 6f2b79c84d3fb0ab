"""Inputs of a run: one cache or several, the images they were made from, and a validation split.

Opening checks that all of them belong together, so that nothing after it compares samples, views or
class numbers again.

Shapes: N samples.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.match import DatasetMatch
from cache_tools.data.open import has_split, open_images
from cache_tools.errors import CacheIncomplete, CacheMismatch, KdcacheError, UsageError
from cache_tools.runtime import progress
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store.aligned import CacheEnsemble, open_ensemble
from cache_tools.store.cache import Cache
from cache_tools.verify import probes, verify
from train.distributed import ALONE, World
from train.recipe import TrainRecipe

log = logging.getLogger("kdcache")
_MAX_PROBED_PARTS = 64


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run."""

    members: CacheEnsemble
    """The cache, or several whose mixture is the target."""
    images: ImageDataset
    """Its data set, in the order of its sample table."""
    validation: ImageDataset | None
    """Labelled validation images, when the data set has them."""
    source: str
    """Path or URL of the data set."""
    coverage: DatasetMatch
    """Samples of the cache that it has."""

    @property
    def present_N(self) -> NDArray[np.bool_]:
        """[N] True where the sample can be shown."""
        return self.coverage.present_N

    @property
    def samples(self) -> str:
        """Identity of the samples that can be shown: "all", or a digest of which they are."""
        return sha256(np.packbits(self.present_N).tobytes()) if self.coverage.missing else "all"

    @property
    def store(self) -> Cache:
        """Reference for samples and views, which are the same in all caches."""
        return self.members.reference

    @property
    def fingerprint(self) -> str:
        """Fingerprint in result.json: of the cache, or of all with their weights."""
        if len(self.members.caches) == 1:
            return self.store.spec.fingerprint
        return sha256(canonical_json(self.shares))

    @property
    def shares(self) -> dict[str, float]:
        """Fingerprint of each cache → its weight."""
        return {member.cache: member.weight for member in self.members.specs}

    def num_views(self, recipe: TrainRecipe) -> int:
        """Count the views of a sample that a run shows: the recipe's, or all."""
        return recipe.num_views or self.members.num_views

    @property
    def num_classes(self) -> int:
        """Length of the student's logits."""
        return self.store.spec.teacher.num_classes


def open_inputs(
    cache: str | Path | Sequence[str | Path],
    data: str | None,
    weights: Sequence[float] | None = None,
    partial: bool = False,
) -> Inputs:
    """Open a cache, or several to mix, and their data set.

    Args:
        cache: Folder, zip or URL of the cache, or of each.
        data: The data set; None: the one the cache was made from on this machine.
        weights: Weight of each cache; None: all alike.
        partial: Train on those samples that the data set has.

    Raises:
        CacheMismatch: The caches are not of the same views, or not of these images.
    """
    members = open_ensemble([cache] if isinstance(cache, str | Path) else cache, weights)
    store = members.reference
    probes.check_replayable(store)
    source = data or members.source
    if not source:
        raise UsageError(
            f"where are the images of {store.name}? Pass their folder (--data, in Python data=)."
        )
    store.map_table()
    images, covered = match.open_aligned(store.table, store.spec.dataset, source, partial)
    validation = None
    if covered.split == "validation":
        log.warning("the cache is of the validation split of %s, which measures no student", source)
    else:
        validation = _validation(source, store, images.class_names)
    return Inputs(members, images, validation, source, covered)


def _validation(source: str, store: Cache, classes: tuple[str, ...]) -> ImageDataset | None:
    """Open the labelled validation split; None, with a warning, if it is not of these classes.

    One that is there and cannot be read is an error: a run would not be measured.
    """
    if not store.spec.dataset.labels or not has_split(source, "validation"):
        return None
    try:
        images = open_images(source, "validation", classes=classes)
    except CacheMismatch as error:
        log.warning("the validation split is not used: %s", error)
        return None
    highest = int(images.label_N.max())
    if NO_LABEL in images.label_N:
        first = images.names[int((images.label_N == NO_LABEL).argmax())]
        log.warning("the validation split of %s is not used: no label for %r", source, first)
    elif highest >= store.spec.teacher.num_classes:
        log.warning(
            "the validation split of %s is not used: its labels go up to %d, the cache has %d "
            "classes", source, highest, store.spec.teacher.num_classes,
        )  # fmt: skip
    else:
        return images
    return None


def check_inputs(inputs: Inputs, world: World = ALONE) -> None:
    """Apply `check_cache` to each cache: equal pixels are what allows to mix their targets.

    Of several processes each checks its share of the parts, and all raise the first error.
    """
    found: list[int] | KdcacheError
    try:
        caches, rest = inputs.members.caches, (inputs.images, inputs.present_N, world)
        found = [check_cache(cache, *rest) for cache in caches]
    except KdcacheError as error:
        found = error
    compared = []
    for of_process in world.all(found):
        if isinstance(of_process, KdcacheError):
            raise of_process
        compared.append(of_process)
    for cache, *probes_of in zip(inputs.members.caches, *compared, strict=True):
        if world.is_main and not sum(probes_of):
            log.warning(
                "%s has no fingerprint of the pixels of these samples (it was cut, or they are not "
                "here): that they equal the teacher's follows from the library versions alone",
                cache.name,
            )


def check_cache(
    cache: Cache,
    images: ImageDataset,
    present_N: NDArray[np.bool_] | None = None,
    world: World = ALONE,
) -> int:
    """Refuse an incomplete cache, and images whose pixels differ from the cache's.

    Compares every part's digests and renders the probe views of up to 64 parts, spread evenly; of
    several processes this one takes its share of both. Returns the number of views compared.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the file or the sample.
    """
    parts = list(cache.parts())
    if cache.is_remote:  # bytes and pixels are checked when an epoch's parts are fetched
        log.info("%s: parts are fetched as epochs need them, and kept on this machine", cache.name)
        committed = cache.committed()
        for part in parts:
            if part not in committed:
                missing = CacheIncomplete(f"{part} of {cache.name} is missing.")
                raise cache.check_part(part) or missing
        parts = [part for part in committed if part.view == 0]
    else:
        own = parts[world.rank :: world.size]
        with progress.bar("check the cache", len(own), "parts") as advance:
            for _, fault in verify.faults(cache, own):
                if fault is not None:
                    raise fault
                advance(1)
    count = min(len(parts), _MAX_PROBED_PARTS)
    probed = [parts[i * len(parts) // count] for i in range(count)][world.rank :: world.size]
    return sum(probes.check_probes(cache, images, part, present_N) for part in probed)
