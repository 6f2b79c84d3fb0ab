"""Likely kind of a folder that is not a cache, for messages: names alone are looked at."""

from itertools import islice
from pathlib import Path

_MOST, _DEPTH = 500, 3
"""Entries of a folder, and levels of folders, that are looked at."""
_SHARDS = (".tar", ".tar.gz", ".tgz", ".beton", ".parquet", ".arrow")
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".ppm", ".tif", ".tiff")
_FILES = {"config.json": "a run or a network", "sweep.json": "a sweep"}
_FOLDERS = {"zarr.json": "caches", "config.json": "runs or networks"}
"""A name in a folder, or in a folder of it → kind of that folder."""


def likely_kind(folder: Path) -> str:
    """Describe a folder by the names in it: "a data set (digits-train-0000.tar)".

    Returns:
        "" of an empty folder, one that cannot be listed, or a cache that has lost its root.
    """
    try:
        return _kind(folder)
    except OSError:
        return ""


def _kind(folder: Path) -> str:
    entries = _entries(folder)
    if not entries or {"samples", "targets"} <= {entry.name for entry in entries}:
        return ""
    for name, kind in _FILES.items():
        if (folder / name).is_file():
            return f"{kind} ({name})"
    if shard := next((e.name for e in entries if e.name.lower().endswith(_SHARDS)), None):
        return f"a data set ({shard})"
    for name, kind in _FOLDERS.items():
        if inner := [entry.name for entry in entries if (entry / name).is_file()]:
            return f"a folder of {kind} ({', '.join(inner[:5])})"
    if (found := _first_data(folder, _DEPTH)) is not None:
        return f"a data set ({found.relative_to(folder)})"
    return f"a folder of other files ({entries[0].name})"


def _entries(folder: Path) -> list[Path]:
    return sorted(islice((e for e in folder.iterdir() if not e.name.startswith(".")), _MOST))


def _first_data(folder: Path, depth: int) -> Path | None:
    """Find a shard or an image within `depth` levels."""
    entries = _entries(folder)
    for entry in entries:
        if entry.name.lower().endswith((*_SHARDS, *_IMAGES)):
            return entry
    for entry in entries if depth > 1 else ():
        if entry.is_dir() and (found := _first_data(entry, depth - 1)) is not None:
            return found
    return None
