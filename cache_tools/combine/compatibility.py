"""Compatibility of caches to be merged, and the spec of the whole.

They are of one family when their specs differ in nothing but the samples: the same teacher, views,
classes and data set. Where views are mixed, partners depend on the samples beside a sample in the
table. Then caches are merged when each window of the whole table is one of a single cache. Imported
views name their partners, and are merged in any case.

Shapes: N samples of the whole, S caches.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.combine import assemble
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import difference
from cache_tools.spec.sample_table import SampleTable
from cache_tools.store.cache import Cache

log = logging.getLogger("kdcache")
BLOCK = 65_536
"""Rows of a block when no cache that is merged has more than one, of up to _KEPT classes."""
_KEPT = 1024
_OF_SAMPLES = ("num_samples", "table_sha256")


def check_compatible(stores: Sequence[Cache]) -> None:
    """CacheMismatch unless specs differ in nothing but samples and blocks.

    Raises:
        UsageError: There are fewer than two.
    """
    if len(stores) < 2:
        raise UsageError("a merge is of two caches or more. Name all of them.")
    for a, b in pairwise(stores):
        if found := difference(_family(a.spec), _family(b.spec)):
            raise CacheMismatch(
                f"{a.name} and {b.name} cannot be merged: {found}. Caches of one teacher, the same "
                "views and the same classes can; those of other teachers make an ensemble "
                "(`kdcache ensemble`)."
            )
    if not stores[0].spec.teacher.weights_sha256:
        log.warning(
            "these caches were imported without the weights of %s: that all targets are of one "
            "teacher cannot be checked",
            stores[0].spec.teacher.name,
        )


def merge_tables(tables: Sequence[SampleTable], names: Sequence[str]) -> SampleTable:
    """Merge sample tables; CacheMismatch when two differ in a sample."""
    keys = [key for table in tables for key in table.keys]
    columns = {
        c: np.concatenate([getattr(t, f"{c}_N") for t in tables]) for c in SampleTable.COLUMNS
    }
    order = np.argsort(columns["id"], kind="stable")
    sorted_ = {name: column[order] for name, column in columns.items()}
    again = np.flatnonzero(np.diff(sorted_["id"]) == 0)
    which = np.repeat(np.arange(len(tables)), [len(table) for table in tables])[order]
    for name, column in sorted_.items():
        differ = again[column[again] != column[again + 1]]
        if len(differ):
            at = int(differ[0])
            raise CacheMismatch(
                f"{names[which[at]]} and {names[which[at + 1]]} cannot be merged: the {name} of "
                f"{keys[order[at]]!r} is {column[at]} in the first and {column[at + 1]} in the "
                "second. They are of other images."
            )
    first = np.setdiff1d(np.arange(len(order)), again + 1)
    kept = (column[first] for column in sorted_.values())
    return SampleTable(tuple(keys[i] for i in order[first].tolist()), *kept)


def spec_of(stores: Sequence[Cache], table: SampleTable, block_size: int) -> CacheSpec:
    """Build the spec of the whole; UsageError when its blocks cannot be."""
    spec = stores[0].spec
    sizes = {store.spec.block_size for store in stores if store.spec.num_blocks > 1}
    largest = BLOCK  # fewer rows where many classes are kept
    while largest > spec.window and largest * spec.targets.k_max > BLOCK * _KEPT:
        largest //= 2
    largest = largest - largest % spec.window or spec.window
    rows = block_size or max(sizes, default=largest)
    dataset = replace(spec.dataset, num_samples=len(table), table_sha256=table.sha256)
    try:
        return replace(spec, dataset=dataset, block_size=min(rows, len(table)))
    except ValueError as error:
        raise UsageError(
            f"there can be no parts of {rows:,} samples: {error} Pass another --block-size, a "
            f"multiple of {spec.window:,} such as {max(sizes, default=8 * spec.window):,}."
        ) from None


def check_windows(
    stores: Sequence[Cache], spec: CacheSpec, row_SN: NDArray[np.int64], table: SampleTable
) -> None:
    """CacheMismatch unless partners stay what they were."""
    for at in assemble.windows(spec, len(table)):
        for row_N, store in zip(row_SN, stores, strict=True):
            first, last = int(row_N[at][0]), int(row_N[at][-1])
            length, whole = at.stop - at.start, len(store.table)
            aligned = first >= 0 and first % spec.window == 0
            full = last - first == length - 1 and min(first + spec.window, whole) == last + 1
            if aligned and full and (row_N[at] >= 0).all():
                break
        else:
            raise CacheMismatch(
                f"these caches cannot be merged: their views are mixed within windows of "
                f"{spec.window} samples, and that of {table.keys[at.start]!r} would have samples "
                "of several caches: partners, and so the pixels, would be others. Caches that were "
                "cut by shares of one sample table can be merged."
            )


def _family(spec: CacheSpec) -> dict[str, Any]:
    """Return the common spec of merged caches."""
    mapping = spec.mapping
    dataset = {k: v for k, v in mapping["dataset"].items() if k not in _OF_SAMPLES}
    family = {**mapping, "dataset": dataset}
    del family["block_size"]  # may differ: parts are put together row by row
    return family
