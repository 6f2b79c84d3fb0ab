"""Shards of a source: a folder with timm's `_info.json` or without, a pattern, a URL.

Only names are found here; `open` and `remote_shards` read them.
"""

import glob
from dataclasses import dataclass, field
from pathlib import Path

from cache_tools.data import info_json
from cache_tools.data.info_json import SPLITS, DatasetInfo, Split
from cache_tools.data.unpacked import is_shard
from cache_tools.errors import UsageError
from cache_tools.storage import paths
from cache_tools.storage.fsspec_client import FsspecClient

_MAX_INFO = 2**26


def resolve(source: str) -> str:
    """Make the name of a data set absolute."""
    return source if "://" in source else str(Path(paths.expand(source)).resolve())


def has_split(source: str, split: str) -> bool:
    """Check if the data set at `source` has images of its own for `split`."""
    if (info := describe(source)) is not None:
        return info.find(split) is not None
    return "://" not in source and any((Path(source) / name).is_dir() for name in SPLITS[split])


def describe(source: str) -> DatasetInfo | None:
    """Read the `_info.json` of a folder or URL, or None if there is none."""
    if "://" in source:
        if _is_pattern(source) or is_shard(source):
            return None
        data = FsspecClient(source).read(info_json.NAME, _MAX_INFO)
        where = f"{source.rstrip('/')}/{info_json.NAME}"
    else:
        path = Path(source) / info_json.NAME
        data, where = path.read_bytes() if path.is_file() else None, str(path)
    return None if data is None else info_json.parse(data, where)


@dataclass(frozen=True)
class ShardSource:
    """The shards that a source names."""

    root: str
    """Folder or URL."""
    names: tuple[str, ...]
    """Shards, relative to it."""
    info: DatasetInfo | None = None
    """Their description."""
    split: Split = field(default_factory=lambda: Split(()))
    """The requested split."""


def _is_pattern(source: str) -> bool:
    """Check if a source is a pattern of names; a question mark in a URL begins its query."""
    if "://" in source:
        return any(c in source.partition("?")[0] for c in "*[{")
    return any(c in source for c in "*?[{") and not Path(source).exists()


def find_local(source: str, split: str) -> ShardSource | None:
    """Find the shards of a local source; None if it is a folder of images."""
    folder = Path(source)
    if _is_pattern(source):
        return ShardSource("", tuple(_matches(source)))
    if folder.is_file():
        return ShardSource("", (source,))
    if not folder.is_dir():
        raise UsageError(f"there is no data set at {source}. DATA is a folder of shards or images.")
    if (info := describe(source)) is not None:
        found = info.need(split)
        absent = [name for name in found.filenames if not (folder / name).is_file()]
        if absent:
            raise info_json.missing(info.where, found.filenames, absent)
        return ShardSource(source, found.filenames, info, found)
    paths = sorted(p for p in split_folder(folder, split).iterdir() if is_shard(p.name))
    return ShardSource("", tuple(map(str, paths))) if paths else None


def _matches(pattern: str) -> list[str]:
    """Files that a glob or brace pattern names: every one of a brace pattern must be there."""
    folder, below = paths.split_pattern(pattern)
    names = info_json.expand(below)
    if not any(c in below for c in "*?["):
        files = [str(folder / name) for name in names]
        if absent := [name for name in files if not Path(name).is_file()]:
            raise info_json.missing(pattern, files, absent)
        return files
    globbed = (glob.glob(name, root_dir=folder) for name in names)  # noqa: PTH207 - sorted below
    found = sorted(str(folder / file) for files in globbed for file in files)
    if not found:
        raise UsageError(f"no file matches {pattern}.")
    return found


def split_folder(folder: Path, split: str) -> Path:
    """Return the sub-folder of this split, or the folder itself if it has none."""
    return next((folder / n for n in SPLITS[split] if (folder / n).is_dir()), folder)


def find_remote(source: str, split: str) -> ShardSource:
    """Find the shards of a URL; UsageError if there are none."""
    if (info := describe(source)) is not None:
        found = info.need(split)
        return ShardSource(source, found.filenames, info, found)
    root, _, pattern = source.rstrip("/").rpartition("/")
    if "*" in source:
        names = FsspecClient(root).find(pattern)
    elif _is_pattern(source):
        names = info_json.expand(pattern)
    elif is_shard(pattern):
        names = [pattern]
    else:
        root, remote = source, FsspecClient(source)
        folders = ("", *(f"{name}/" for name in SPLITS[split]))
        listed = ([n for n in remote.find(f"{f}*.t*") if is_shard(n)] for f in folders)
        names = next((found for found in listed if found), [])
    if not names:
        raise UsageError(
            f"there are no shards at {source}: no {info_json.NAME}, and no tar that can be "
            "listed. Name them by a pattern such as URL/train-{0000..0127}.tar."
        )
    return ShardSource(root, tuple(names))
