"""`kdcache merge`: caches of several labs as one, with more views, more samples, or both.

They must be of one `family`. Of equal samples, parts are copied as they are. Of several sets of
samples a new table is made of all of them, and parts are put together from stored codes
(`assemble`); the result is what one run over all samples would have written, byte for byte in its
targets. What two caches both have is compared, and a difference refused: one teacher says one thing
of a view.

Shapes: N samples of the whole.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.combine import assemble, compatibility
from cache_tools.combine.assemble import NewPart, PartBuilder
from cache_tools.errors import CacheDamaged, CacheMismatch
from cache_tools.numerics.array_types import I8
from cache_tools.runtime import progress
from cache_tools.runtime.signals import StopRequest
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.store import commits, resume
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec

log = logging.getLogger("kdcache")


def run(stores: Sequence[Cache], out: Path, block_size: int = 0) -> Cache:
    """Write the union of caches, or what is missing of it.

    `block_size`: rows of a block; 0: as the caches have it.

    Raises:
        CacheMismatch: They are not of one family, or two have another part in one place.
        UsageError: There is another cache at `out`.
        KeyboardInterrupt: A signal came; what is committed stays.
    """
    compatibility.check_compatible(stores)
    views = max(store.num_views for store in stores)
    alike = len({store.spec.fingerprint for store in stores}) == 1
    if alike and block_size in (0, stores[0].spec.block_size):
        spec, table = stores[0].spec, stores[0].table
        maker: _Same | _Rows = _Same(stores)
    else:
        table = compatibility.merge_tables(
            [store.table for store in stores], [store.name for store in stores]
        )
        spec = compatibility.spec_of(stores, table, block_size)
        maker = _Rows(stores, spec, table)
    result = resume.open_or_create(out, spec, lambda: table, views)
    for store in stores:
        if store.source and not result.source:
            result.set_data_path(store.source)
    parts = list(result.parts())
    unknown = []
    with StopRequest() as stop, progress.bar("merge", len(parts), "parts") as advance:
        for part in parts:
            if stop.requested:
                raise KeyboardInterrupt
            if not maker.make(result, part):
                unknown.append(part)
            advance(1)
    if unknown:
        log.warning(
            "%d of %d parts are in none of the caches as a whole (first: %s); merge again with one "
            "that has them",
            len(unknown),
            len(parts),
            unknown[0],
        )
    return result


class _Same:
    """Parts of caches of the same samples: copied as they are."""

    def __init__(self, stores: Sequence[Cache]) -> None:
        self._stores = stores

    def make(self, out: Cache, part: Part) -> bool:
        """Copy a part from a cache that has it, after a look at what the others have."""
        having = [(store, r) for store in self._stores if (r := _record(store, part)) is not None]
        for (a, ours), (b, theirs) in pairwise(having):
            _check_same(a, ours, b, theirs, part)
        if not having:
            return False
        if out.check_part(part) is None:
            _check_same(out, out.record(part), *having[0], part)
            return True
        whole = [store for store, _ in having if store.check_part(part) is None]
        if not whole:
            raise having[0][0].check_part(part) or CacheDamaged(f"{part} of {having[0][0].name}.")
        # of parts that were cut or not, the one with most fingerprints of pixels
        record, chunks = max(
            (store.read_chunks(part) for store in whole),
            key=lambda read: np.count_nonzero(whole[0].decode(part, read[1])[1]),
        )
        out.commit(part, chunks, commits.sealed(record))
        return True


class _Rows:
    """Parts of caches of several sets of samples: put together row by row."""

    def __init__(self, stores: Sequence[Cache], spec: CacheSpec, table: SampleTable) -> None:
        self._stores, self._table = stores, table
        self._row_SN = np.full((len(stores), len(table)), -1, dtype=np.int64)
        for row_N, store in zip(self._row_SN, stores, strict=True):
            row_N[np.searchsorted(table.id_N, store.table.id_N)] = np.arange(len(store.table))
        if spec.replayable and spec.views.mixes and spec.imported is None:
            compatibility.check_windows(stores, spec, self._row_SN, table)
        new_row_of = [np.searchsorted(table.id_N, store.table.id_N) for store in stores]
        self._builder = PartBuilder(stores, new_row_of)

    def make(self, out: Cache, part: Part) -> bool:
        """Put a part together; False when no cache has some row of it in this view."""
        rows = out.spec.rows(part.block)
        new_B = np.arange(rows.start, rows.stop)
        there_SB = np.stack([self._there(i, part.view, new_B) for i in range(len(self._stores))])
        if not there_SB.any(axis=0).all():
            return False
        source_B = there_SB.argmax(axis=0)
        made = self._gather(part.view, source_B, new_B)
        for i, store in enumerate(self._stores):
            twice_B = new_B[there_SB[i] & (source_B != i)]
            if not len(twice_B):
                continue
            other = self._gather(part.view, np.full(len(twice_B), i), twice_B)
            at_B = twice_B - rows.start
            differ_B = ~assemble.targets_equal(codec.select_rows(made.stored, at_B), other.stored)
            pixels = ((other.known.get(row), made.known.get(row)) for row in twice_B.tolist())
            differ_B |= [None not in pair and pair[0] != pair[1] for pair in pixels]
            if made.params and other.params:
                differ_B |= made.params.rows(at_B).differ(other.params)
            if differ_B.any():
                row = int(twice_B[np.flatnonzero(differ_B)[0]])
                first = self._stores[int(source_B[row - rows.start])]
                there = Part(part.view, int(self._row_SN[i, row]) // store.spec.block_size)
                raise _conflict(first, store, there, self._table.keys[row])
            made = replace(made, known=other.known | made.known)
        if out.check_part(part) is None:
            if not (
                assemble.targets_equal(out.read(part)[0], made.stored).all()
                and (made.params is None or out.read_params(part).equals(made.params))
            ):
                raise _conflict(out, self._stores[int(source_B[0])], part)
            return True
        facts = assemble.statistics(out, part, made.stored, made.params)
        versions = assemble.versions(made.versions, "merge")
        probes = made.probes(out.spec, rows)
        return out.write(part, made.stored, probes, facts, versions, made.params) or True

    def _there(self, i: int, view: int, new_B: I8) -> NDArray[np.bool_]:
        """[B] whether a cache has a row's target in a view."""
        store, row_B = self._stores[i], self._row_SN[i, new_B]
        if view >= store.num_views:
            return np.zeros(len(row_B), dtype=bool)
        block_B = row_B // store.spec.block_size
        blocks = np.unique(block_B[row_B >= 0]).tolist()
        committed = [b for b in blocks if _record(store, Part(view, b)) is not None]
        return np.asarray((row_B >= 0) & np.isin(block_B, committed))

    def _gather(self, view: int, source_B: I8, new_B: I8) -> NewPart:
        return self._builder.gather(view, source_B, self._row_SN[source_B, new_B], new_B)


def _record(store: Cache, part: Part) -> dict[str, Any] | None:
    """Return the record of a part, or None where it is not committed."""
    if part.view >= store.num_views or store.storage.size(part.record) is None:
        return None
    return store.record(part)


def _targets(record: dict[str, Any]) -> dict[str, str]:
    """Digests of the chunks of a part but for the fingerprints of pixels."""
    chunks = record["chunks"].items()
    return {n: c["sha256"] for n, c in chunks if not n.startswith("probes/")}


def _check_same(
    a: Cache, ours: dict[str, Any], b: Cache, theirs: dict[str, Any], part: Part
) -> None:
    """CacheMismatch when two caches have different targets, or are of different pixels."""
    if _targets(ours) != _targets(theirs):
        raise _conflict(a, b, part)
    if ours["chunks"] != theirs["chunks"]:
        pixels_a, pixels_b = a.read(part)[1], b.read(part)[1]
        if ((pixels_a != pixels_b) & (pixels_a > 0) & (pixels_b > 0)).any():
            raise _conflict(a, b, part)


def _conflict(a: Cache, b: Cache, part: Part, key: str = "") -> CacheMismatch:
    of = f" of {key!r}" if key else ""
    return CacheMismatch(
        f"{part} of {b.name} is not as in {a.name}: the targets{of}, the views or the pixels "
        "differ. A cache has one target of a view; other devices or libraries give other last "
        "bits. Cut that part away with `kdcache select --views …`, or merge without one of the "
        "caches."
    )
