"""Parts of a new cache from the parts of others: rows by their keys, code by code.

A cache that was cut by samples, or merged from caches of several samples, has other blocks than
those it is made of. Its parts are put together from the stored codes, which are neither decoded nor
rounded again, so that they are the bytes the teacher's own run over these samples would have
written. Fingerprints of pixels come along where the view is a probe in both; the others are 0:
nobody has rendered them. Parameters of imported views come along; partners become rows of the new
table.

Shapes: N samples of the new cache, B rows of a part.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8, U8
from cache_tools.runtime import concurrency
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store import view_params
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.targets.statistics import most_probable, part_statistics
from cache_tools.version import __version__
from cache_tools.views.imported import ImportedViews

_ROWS = 4096


@dataclass(frozen=True)
class NewPart:
    """A part of a new cache."""

    stored: EncodedTargets
    """Its targets."""
    known: dict[int, int]
    """Row of the new table → fingerprint of its pixels, where an old part has one."""
    versions: dict[str, str]
    """Source of the old parts."""
    params: ImportedViews | None
    """Parameters of its views, where these were imported."""

    def probes(self, spec: CacheSpec, rows: range) -> U8:
        """Fingerprints of the pixels of the new part's probes; 0 where none is known."""
        numbers = probe_numbers(rows) if spec.replayable else []
        return np.array([self.known.get(number, 0) for number in numbers], dtype=np.uint64)


@dataclass(frozen=True)
class _Old:
    """An old part as it was read."""

    stored: EncodedTargets
    probes: U8
    versions: dict[str, str]
    params: ImportedViews | None


class PartBuilder:
    """Reads rows of caches, view by view."""

    def __init__(self, stores: Sequence[Cache], new_row_of: Sequence[I8] = ()) -> None:
        """Read rows of `stores`.

        Args:
            stores: The caches.
            new_row_of: For each of them, the row of the new table that each of its rows becomes;
                nothing: all tables are the same.
        """
        self._stores, self._new_row_of = stores, new_row_of
        self._view = -1
        self._read: dict[tuple[int, int], _Old] = {}
        self.records: dict[tuple[int, Part], dict[str, Any]] = {}
        """Records that are known already, by cache and part: they need not be read again."""
        self.moved = 0
        """Bytes of chunks that were read."""

    def sources(self, view: int, source_B: I8, row_B: I8) -> list[tuple[int, Part]]:
        """List the caches and parts that contain rows of a view."""
        pairs = np.stack([source_B, self._blocks(source_B, row_B)], axis=1)
        return [(int(s), Part(view, int(b))) for s, b in np.unique(pairs, axis=0)]

    def gather(self, view: int, source_B: I8, row_B: I8, new_B: I8) -> NewPart:
        """Read the targets of some rows of a view.

        Raises:
            CacheIncomplete, CacheDamaged: A part that has them is not there, or damaged.
        """
        pairs, block_B = self.sources(view, source_B, row_B), self._blocks(source_B, row_B)
        self._fetch(view, pairs)
        pieces, views, places = [], [], []
        known: dict[int, int] = {}
        versions: dict[str, str] = {}
        for source, old in pairs:
            here = np.flatnonzero((source_B == source) & (block_B == old.block))
            rows = self._stores[source].spec.rows(old.block)
            read, at = self._read[source, old.block], row_B[here] - rows.start
            pieces.append(codec.select_rows(read.stored, at))
            if read.params:
                params = read.params.rows(at)
                if self._new_row_of and self._stores[source].spec.views.mixes:
                    partner_B = self._new_row_of[source][params.partner_B.astype(np.int64)]
                    params = replace(params, partner_B=partner_B.astype(np.uint32))
                views.append(params)
            places.append(here)
            if len(read.probes):
                of_old = dict(zip(probe_numbers(rows), read.probes.tolist(), strict=True))
                moved = zip(row_B[here].tolist(), new_B[here].tolist(), strict=True)
                known |= {new: of_old[row] for row, new in moved if of_old.get(row)}
            versions = read.versions | versions
        order = np.argsort(np.concatenate(places))
        moved_views = field_arrays.concatenate(views).rows(order) if views else None
        targets = codec.select_rows(codec.concatenate(pieces), order)
        return NewPart(targets, known, versions, moved_views)

    def _blocks(self, source_B: I8, row_B: I8) -> I8:
        size_S = np.array([store.spec.block_size for store in self._stores])
        return np.asarray(row_B // size_S[source_B])

    def _fetch(self, view: int, pairs: list[tuple[int, Part]]) -> None:
        """Read missing parts; a view's parts stay in memory for its next block."""
        if view != self._view:
            self._view, self._read = view, {}
        missing = [(s, old) for s, old in pairs if (s, old.block) not in self._read]
        if not missing:
            return
        most = max(self._stores[s].spec.part_bytes for s, _ in missing)
        with ThreadPoolExecutor(concurrency.max_in_flight(concurrency.JOBS, most)) as pool:
            for (s, old), found in zip(missing, pool.map(self._load, missing), strict=True):
                self._read[s, old.block] = found

    def _load(self, pair: tuple[int, Part]) -> _Old:
        store, part = self._stores[pair[0]], pair[1]
        record, chunks = store.read_chunks(part, self.records.pop(pair, None))
        self.moved += sum(map(len, chunks.values()))
        params = store.decode_params(part, chunks) if store.spec.imported else None
        return _Old(*store.decode(part, chunks), record["versions"], params)


def targets_equal(a: EncodedTargets, b: EncodedTargets) -> NDArray[np.bool_]:
    """[B] whether two targets are the same, code by code."""
    same_B = a.count_B == b.count_B
    for ours, theirs in (
        (a.tail_TB, b.tail_TB),
        (a.true_PB, b.true_PB),
        (a.square_QB, b.square_QB),
    ):
        same_B &= (ours == theirs).all(axis=0)
    rows = np.flatnonzero(same_B)
    few_a, few_b = codec.select_rows(a, rows), codec.select_rows(b, rows)
    differ_E = (few_a.index_delta_E != few_b.index_delta_E) | (few_a.code_E != few_b.code_E)
    of_entry = np.repeat(rows, few_a.count_B)
    same_B[of_entry[differ_E]] = False
    return np.asarray(same_B)


def versions(of_source: dict[str, str], tool: str) -> dict[str, str]:
    """Versions of a part that `tool` made of another one."""
    return {**of_source, tool: f"kdcache {__version__}"}


def statistics(
    store: Cache, part: Part, stored: EncodedTargets, params: ImportedViews | None = None
) -> dict[str, float]:
    """Statistics of a commit record, computed from stored targets."""
    top_B, top_sum = np.empty(len(stored), dtype=np.int64), 0.0
    for begin in range(0, len(stored), _ROWS):
        row_B = np.arange(begin, min(begin + _ROWS, len(stored)))
        said = codec.decode(stored, store.spec.targets, row_B)
        top_B[row_B], batch_sum = most_probable(said.index_BK, said.probability_BK)
        top_sum += batch_sum
    label_BP = labels(store, part, params)
    labelled = label_BP.shape[1] == 1 and NO_LABEL not in label_BP
    correct = float((top_B == label_BP[:, 0]).sum()) if labelled else None
    return part_statistics(stored, top_sum, correct)


def windows(spec: CacheSpec, count: int) -> list[slice]:
    """List the windows within which samples of a table of `count` rows are paired."""
    return [slice(b, min(b + spec.window, count)) for b in range(0, count, spec.window)]


def labels(store: Cache, part: Part, params: ImportedViews | None = None) -> I8:
    """[B, P] labels of a part's views, and their partners' where views are mixed.

    `params`: those of its views when it is not committed yet, where they were imported.
    """
    rows, label_N = store.spec.rows(part.block), store.table.label_N.astype(np.int64)
    own_B = label_N[rows.start : rows.stop]
    if not (store.spec.replayable and store.spec.views.mixes):
        return own_B[:, None]
    if params is not None:
        partner_B = params.partner_B.astype(np.int64)
    else:
        partner_B = view_params.mixing(store, part.view, rows.start, rows.stop).partner_B
    return np.stack([own_B, label_N[partner_B]], axis=1)
