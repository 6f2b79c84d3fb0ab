"""Sizes of the files that a reader of some views has to fetch."""

from pathlib import Path


def needed(cache: Path, views: range) -> int:
    """Bytes of the parts of some views, and of what reading them needs."""
    of_views = {str(view) for view in views} | {f"v{view:04d}" for view in views}
    files = [p for p in cache.rglob("*") if p.is_file()]
    chunks = [p for p in files if "/c/" in str(p) or p.parts[-3] == "commits"]
    parts = [p for p in chunks if p.parts[-2] in of_views and "samples" not in p.parts]
    table = [p for p in files if "samples/" in str(p) and p.name == "0"]
    return sum(p.stat().st_size for p in {*parts, *table, cache / "zarr.json"})
