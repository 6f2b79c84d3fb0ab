"""`kdcache pull` and `kdcache select`: parts of a cache, from a path or a URL, to this machine.

What is committed here and intact is not fetched again, so a killed run resumes. Every byte is
compared with the digest in its commit record before it is written; a part that differs is fetched
again. A cut by views moves the parts it names, the sample table and nothing else. A cut by samples
or classes moves the parts that hold them and makes smaller ones of them here.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.combine import select
from cache_tools.combine.assemble import PartBuilder
from cache_tools.combine.select import Selection
from cache_tools.errors import CacheIncomplete
from cache_tools.runtime import concurrency, progress
from cache_tools.runtime.signals import StopRequest
from cache_tools.runtime.text import counted
from cache_tools.store import commits, resume
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part

log = logging.getLogger("kdcache")


@dataclass
class PullStats:
    """Parts and bytes of a pull."""

    there: int = 0
    """Parts that were there already."""
    made: int = 0
    """Parts that were committed."""
    bytes: int = 0
    """Bytes of chunks that were read at the source."""
    missing: list[Part] = field(default_factory=list)
    """Parts that the source lacks."""


def run(
    source: Cache, out: Path, wanted: Selection, jobs: int = concurrency.JOBS
) -> tuple[Cache, PullStats]:
    """Write a cut of a cache, or what is missing of it.

    `jobs`: parts in flight at once.

    Raises:
        UsageError: There is another cache at `out`.
        CacheIncomplete: The source lacks parts; all others are committed.
        CacheDamaged, DataError: The source cannot be read; what is committed stays.
        KeyboardInterrupt: A signal came; what is committed stays.
    """
    row_N = wanted.row_N
    store = resume.open_or_create(
        out,
        wanted.spec,
        lambda: source.table if row_N is None else select.table_of(source.table, row_N),
        wanted.views.stop,
    )
    parts = [part for part in store.parts() if part.view in wanted.views]
    todo = faulty(store, parts)
    stats = PullStats(there=len(parts) - len(todo))
    with StopRequest() as stop:
        if wanted.verbatim:
            _copy(source, store, todo, stats, stop, jobs)
        else:
            _remake(source, store, wanted, todo, stats, stop)
    if stop.requested:
        raise KeyboardInterrupt
    if stats.missing:
        raise CacheIncomplete(
            f"{source.name} lacks {len(stats.missing)} of the {len(parts)} parts that were "
            f"selected (first: {min(stats.missing)}). The others are in {out}; run the same "
            "command again when they are there."
        )
    return store, stats


def faulty(store: Cache, parts: Sequence[Part]) -> list[Part]:
    """Parts that are not committed or do not hold."""
    with ThreadPoolExecutor(
        concurrency.max_in_flight(concurrency.JOBS, store.spec.part_bytes)
    ) as pool:
        faults = pool.map(store.check_part, parts)
        return [part for part, fault in zip(parts, faults, strict=True) if fault is not None]


def _copy(
    source: Cache, store: Cache, todo: list[Part], stats: PullStats, stop: StopRequest, jobs: int
) -> None:
    """Parts as they are, with their records, several at once."""
    records = fetch_records(source, todo)

    def fetch(part: Part) -> int:
        record, chunks = source.read_chunks(part, records.pop(part, None))
        store.commit(part, chunks, commits.sealed(record))
        return sum(map(len, chunks.values()))

    total = expected_bytes(records, todo)
    with progress.bar("fetch", total, "bytes") as advance:
        jobs = concurrency.max_in_flight(jobs, source.spec.part_bytes)
        for part, future in concurrency.run_bounded(fetch, todo, jobs, stop):
            try:
                size = future.result()
            except CacheIncomplete:
                stats.missing.append(part)
                continue
            stats.made, stats.bytes = stats.made + 1, stats.bytes + size
            advance(size)


def _remake(
    source: Cache,
    store: Cache,
    wanted: Selection,
    todo: list[Part],
    stats: PullStats,
    stop: StopRequest,
) -> None:
    """Parts made anew from those of the source, view by view."""
    builder, olds = PartBuilder([source]), set[Part]()
    for part in todo:
        row_B, _ = select.places(wanted, part)
        olds |= {old for _, old in builder.sources(part.view, np.zeros_like(row_B), row_B)}
    needed = sorted(olds)
    records = fetch_records(source, needed)
    total = expected_bytes(records, needed)
    builder.records = {(0, part): record for part, record in records.items()}
    _log_surplus(source, wanted, needed)
    with progress.bar("fetch and cut", total, "bytes") as advance:
        for part in todo:
            if stop.requested:
                return
            before = builder.moved
            try:
                select.make(builder, wanted, store, part)
            except CacheIncomplete:
                stats.missing.append(part)
                continue
            finally:
                advance(builder.moved - before)
            stats.made, stats.bytes = stats.made + 1, builder.moved


def _log_surplus(source: Cache, wanted: Selection, needed: Sequence[Part]) -> None:
    """Log when more is moved than is selected."""
    if wanted.row_N is None or not needed:
        return
    blocks = {part.block for part in needed}
    held = sum(len(source.spec.rows(block)) for block in blocks)
    if held > len(wanted.row_N):
        log.info(
            "%d of %s with the %s, and %s that are moved with them: a part is fetched as a whole",
            len(blocks),
            counted(source.spec.num_blocks, "block"),
            counted(len(wanted.row_N), "sample"),
            counted(held - len(wanted.row_N), "other"),
        )


def fetch_records(source: Cache, parts: Sequence[Part]) -> dict[Part, dict[str, Any]]:
    """Read the records of the first part of each block, where there are any."""
    first = {part.block: part for part in reversed(parts)}.values()
    records = {}
    for part in first:
        with contextlib.suppress(CacheIncomplete):
            records[part] = source.record(part)
    return records


def expected_bytes(records: Mapping[Part, dict[str, Any]], parts: Sequence[Part]) -> int:
    """About how many bytes the chunks of parts have, by the records of one view."""
    sizes = {
        part.block: sum(chunk["bytes"] for chunk in record["chunks"].values())
        for part, record in records.items()
    }
    return sum(sizes.get(part.block, 0) for part in parts)
