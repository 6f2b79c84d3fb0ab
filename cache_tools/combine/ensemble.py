"""`kdcache ensemble`: aligned caches of several teachers become the cache of their mixture.

No teacher and no image is needed. Each part is read from every member, mixed (`mixture`), rounded
to codes again and committed, so a killed run goes on with the parts that are missing. The pixels'
fingerprints are taken over from the members, after a look whether all saw the same.

Shapes: B views, P labels of a view.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cache_tools.combine import assemble
from cache_tools.errors import CacheIncomplete, CacheMismatch, UsageError
from cache_tools.runtime import progress
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.store import resume
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, mixture
from cache_tools.targets.keep import checked, parse
from cache_tools.targets.statistics import most_probable, part_statistics
from cache_tools.version import __version__

_ROWS = 4096
"""Rows that are mixed at once: a few ten megabytes at 64 kept classes."""


def run(members: CacheEnsemble, out: Path, keep: str = "") -> Cache:
    """Write the cache of a mixture, or what is missing of it.

    `keep`: classes to keep (`targets.keep`); "": as the members do (`default_targets`).

    Raises:
        UsageError: There is another cache at `out`, or more is to be kept than the members have.
        CacheIncomplete, CacheDamaged, CacheMismatch: A part of a member is not there, is damaged,
            or is of other pixels; what is committed stays.
    """
    cache_spec = _spec(members, keep)
    for member in members.caches:  # before hours are spent on the first parts
        for part in member.parts():
            if part.view < members.num_views and not member.present(part):
                raise member.check_part(part) or CacheIncomplete(
                    f"{part} of {member.name} is missing."
                )
    store = resume.open_or_create(
        out, cache_spec, lambda: members.reference.table, members.num_views
    )
    if members.source:
        store.set_data_path(members.source)
    todo = [part for part in store.parts() if store.check_part(part) is not None]
    total, left = (
        sum(len(cache_spec.rows(part.block)) for part in parts) for parts in (store.parts(), todo)
    )
    with progress.bar("ensemble", total, "views", total - left) as advance:
        for part in todo:
            _make(members, store, part)
            advance(len(cache_spec.rows(part.block)))
    return store


def default_targets(members: CacheEnsemble) -> TargetSpec:
    """Default sparsity of a mixture: that of the member that keeps most.

    The threshold is the highest of the members': a class that no member kept is below it in every
    member, and so in the mixture. Temperatures and true classes are stored when all members do.
    """
    each = [store.spec.targets for store in members.caches]
    return TargetSpec(
        k_max=max(t.k_max for t in each),
        tau=max(t.tau for t in each),
        k_min=max(t.k_min for t in each),
        levels=max(t.levels for t in each),
        temperatures=members.temperatures,
        true_class=all(t.true_class for t in each),
    )


def _spec(members: CacheEnsemble, keep: str) -> CacheSpec:
    first, targets = members.reference.spec, default_targets(members)
    known = max(
        t.k_max if t.tau == 0 else t.k_min for t in (s.spec.targets for s in members.caches)
    )
    if keep:
        wanted = parse(keep, ("k", "k_max", "k_min", "tau", "levels"))
        most = TargetSpec.k_max if wanted.most is None else wanted.most
        k_max = min(most, first.teacher.num_classes)
        only_k = wanted.k is not None and wanted.tau is None
        k_min = wanted.k_min
        if k_min is None:
            k_min = min(k_max, known) if only_k else 1
        tau = targets.tau if only_k else TargetSpec.tau if wanted.tau is None else wanted.tau
        levels = TargetSpec.levels if wanted.levels is None else wanted.levels
        targets = checked(targets, keep, k_max=k_max, k_min=k_min, tau=tau, levels=levels)
    if targets.k_min > known:
        raise UsageError(
            f"{targets.k_min} classes of every view cannot be kept: of some, the members have "
            f"{known}. Pass at most k_min={known}, such as --keep tau=1e-3,k_max=64,k_min={known}."
        )
    sizes = {store.spec.views.teacher_size for store in members.caches}
    seen = replace(first.views, teacher_size=sizes.pop() if len(sizes) == 1 else 0)
    return replace(
        first,
        teacher=TeacherSpec.of_members(members.specs, first.teacher.num_classes),
        views=seen,
        targets=targets,
    )


def _make(members: CacheEnsemble, store: Cache, part: Part) -> None:
    """Mix and commit one part."""
    read = [member.read(part) for member in members.caches]
    probes = read[0][1]
    for member, (_, theirs) in zip(members.caches[1:], read[1:], strict=True):
        if not np.array_equal(probes, theirs):
            a, b = (s.record(part)["versions"] for s in (members.reference, member))
            raise CacheMismatch(
                f"{part} of {members.reference.name} and of {member.name} are of other pixels: the "
                f"first was made with {a}, the second with {b}. Make one of them anew with the "
                "libraries of the other."
            )
    label_NP = assemble.labels(members.reference, part)
    pieces, top_N = [], np.empty(len(label_NP), dtype=np.int64)
    top_sum, mix = 0.0, members.mixture()
    for begin in range(0, len(label_NP), _ROWS):
        row_B = np.arange(begin, min(begin + _ROWS, len(label_NP)))
        said = mix(members.decode([stored for stored, _ in read], row_B), label_NP[row_B])
        sparse = mixture.sparsify(said, store.spec.targets, label_NP[row_B])
        pieces.append(codec.encode(sparse, store.spec.targets, store.spec.teacher.num_classes))
        top_N[row_B], batch_sum = most_probable(sparse.index_BK, sparse.probability_BK)
        top_sum += batch_sum
    stored = codec.concatenate(pieces)
    labelled = not store.spec.views.mixes and NO_LABEL not in label_NP
    correct = float((top_N == label_NP[:, 0]).sum()) if labelled else None
    statistics = part_statistics(stored, top_sum, correct)
    versions = {**members.reference.record(part)["versions"], "ensemble": f"kdcache {__version__}"}
    store.write(part, stored, probes, statistics, versions, members.params(part))
