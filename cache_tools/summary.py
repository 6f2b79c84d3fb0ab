"""What a cache is, in numbers: the facts that `info`, `status` and the README print."""

from dataclasses import asdict
from typing import Any

from cache_tools.store import Store


def info(store: Store) -> dict[str, Any]:
    """Spec, sizes, bytes per view and the teacher's words, over the committed parts."""
    records = [store.record(part) for part in store.parts() if store.present(part)]
    rows = sum(r["rows"][1] - r["rows"][0] for r in records)
    stored = sum(c["bytes"] for r in records for c in r["chunks"].values())
    return {
        "path": str(store.path),
        "fingerprint": store.spec.fingerprint,
        "num_views": store.num_views,
        "parts": store.num_views * store.spec.num_blocks,
        "parts_committed": len(records),
        "views_committed": rows,
        "bytes": stored,
        "bytes_per_view": round(stored / rows, 2) if rows else None,
        "statistics": _mean(records),
        "spec": asdict(store.spec),
    }


def status(store: Store) -> dict[str, Any]:
    """Done and missing parts, by commit records and sizes (digests are `verify`'s)."""
    parts = list(store.parts())
    missing = [part for part in parts if not store.present(part)]
    return {
        "path": str(store.path),
        "complete": not missing,
        "parts": len(parts),
        "committed": len(parts) - len(missing),
        "missing": [{"view": part.view, "block": part.block} for part in missing],
    }


def _mean(records: list[dict[str, Any]]) -> dict[str, float]:
    """Row-weighted means of the statistics in the commit records."""
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for record in records:
        rows = record["rows"][1] - record["rows"][0]
        for name, value in record["statistics"].items():
            sums[name] = sums.get(name, 0.0) + rows * value
            weights[name] = weights.get(name, 0) + rows
    return {name: round(sums[name] / weights[name], 4) for name in sums}
