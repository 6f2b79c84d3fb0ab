"""Facts of a cache, as `info`, `status` and the README print them."""

import re
from typing import Any

from cache_tools.errors import CacheMismatch
from cache_tools.spec.cache import MAX_BLOCKS
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part


def info(store: Cache) -> dict[str, Any]:
    """Collect identity, sizes, bytes per view and statistics of the committed parts."""
    spec, teacher = store.spec, store.spec.teacher
    records = [store.record(part) for part in store.parts() if store.present(part)]
    rows = sum(r["rows"][1] - r["rows"][0] for r in records)
    stored = sum(c["bytes"] for r in records for c in r["chunks"].values())
    means = _means(records)
    return {
        "path": store.name,
        "format": spec.format_version,
        "fingerprint": spec.fingerprint,
        "content_id": store.content_id(),
        "samples": spec.dataset.num_samples,
        "views": store.num_views,
        "classes": teacher.num_classes,
        "parts": {"total": store.num_views * spec.num_blocks, "done": len(records)},
        "targets": rows,
        "bytes": stored,
        "bytes_per_view": round(stored / rows, 2) if rows else None,
        "kept_classes_mean": means.get("kept_classes"),
        "tail_mass_mean": means.get("tail_mass"),
        "max_probability_mean": means.get("max_probability"),
        "teacher": {
            "name": teacher.name,
            "weights_sha256": teacher.weights_sha256,
            "members": list(spec.mapping["teacher"].get("members", ())),
            "top1_on_views": means.get("teacher_top1"),
        },
        "spec": spec.mapping,
    }


def status(store: Cache) -> dict[str, Any]:
    """List done and missing parts, by commit records and sizes (`verify` checks digests)."""
    parts = list(store.parts())
    missing = [part for part in parts if not store.present(part)]
    return {
        "path": store.name,
        "complete": not missing,
        "parts": {"total": len(parts), "done": len(parts) - len(missing)},
        "missing": [{"view": part.view, "block": part.block} for part in missing],
    }


def check_content(store: Cache, content_id: str) -> None:
    """Raise CacheMismatch unless the cache has this content id."""
    if (found := store.content_id()) != content_id:
        raise CacheMismatch(
            f"{store.name} has the content id {found}, not {content_id}. It is another cache, has "
            "grown since, or lacks parts; compare with the source of the id."
        )


def ranges(numbers: list[int]) -> str:
    """Format ascending numbers as a Slurm array: 0-3,7,9-10."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def numbers(text: str) -> list[int] | None:
    """Parse the format of `ranges`, such as 0-3,7; None if `text` is not of it, or too long."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return None
    runs = [[int(n) for n in run.split("-")] for run in text.split(",")]
    if any(run[-1] - run[0] >= MAX_BLOCKS for run in runs):
        return None
    return sorted({n for run in runs for n in range(run[0], run[-1] + 1)})


def part_number(store: Cache, part: Part) -> int:
    """Return the position of a part in `Cache.parts`."""
    return part.view * store.spec.num_blocks + part.block


def _means(records: list[dict[str, Any]]) -> dict[str, float]:
    """Average the statistics in the commit records, weighted by rows."""
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for record in records:
        rows = record["rows"][1] - record["rows"][0]
        for name, value in record["statistics"].items():
            sums[name] = sums.get(name, 0.0) + rows * value
            weights[name] = weights.get(name, 0) + rows
    return {name: round(sums[name] / weights[name], 4) for name in sums}
