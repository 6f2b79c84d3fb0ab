"""Splits and shards of a source: a folder with timm's `_info.json` or without, a pattern, a URL.

Only names are found here; `open` and `remote_shards` read them. A source whose folders or shards
have words for splits in their names is never taken as a whole: what is not found is an error.
"""

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache_tools.columnar import rows
from cache_tools.columnar.rows import is_table
from cache_tools.data import image_folder, info_json
from cache_tools.data.info_json import SPLITS, DatasetInfo, Split, split_words
from cache_tools.data.unpacked import is_shard
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import MAX_JSON
from cache_tools.runtime.text import printable
from cache_tools.storage import paths
from cache_tools.storage.fsspec_client import FsspecClient, split_query, without_secrets

log = logging.getLogger("kdcache")
_ILSVRC = re.compile(r"ILSVRC2012_img_(train|val|test)\w*\.tar")
"""Names of ImageNet's own archives."""
_YEAR = re.compile(r"[-_ ]?\d{4}$")
"""End of the folders train2017 and val2017."""
_NUMBERED = re.compile(r"(.*-)(\d{1,9})-of-(\d{1,9})\b.*")
"""Names of the files of rows of a data set, with their number and how many there are."""
_SHOWN, _DEPTH = 5, 3
"""Folders shown in a message; depths at which a URL is searched for files of rows."""


def absolute(source: str) -> str:
    """Make the name of a data set valid in any folder; a URL keeps its user and query."""
    return source if "://" in source else str(Path(paths.expand(source)).resolve())


def resolve(source: str) -> str:
    """Make the name of a data set absolute, and a URL one without secrets, for a file or a text."""
    return without_secrets(absolute(source))


def has_split(source: str, split: str) -> bool:
    """Check if the data set at `source` has images of its own for `split`.

    Raises:
        UsageError: The split of some images does not follow from their names.
    """
    if (info := describe(source)) is not None:
        return info.find(split) is not None
    if (
        is_pattern(source)
        or is_shard(split_query(source)[0])
        or not ("://" in source or paths.exists(source, folder=True))
    ):
        return False
    if "://" in source:
        remote = FsspecClient(source)
        tars = _remote_tars(remote, "")
        found = _by_word(tars, remote.url) or _by_word(_folders(remote), remote.url)
        if not (found or tars):
            found = _by_word(_remote_tables(remote), remote.url)
    else:
        folder = Path(source)
        found = split_folders(folder) or _by_word(_shards(folder), source)
    return any(word in found for word in SPLITS[split])


def describe(source: str) -> DatasetInfo | None:
    """Read the `_info.json` or `info.json` of a folder or URL, or None if there is none."""
    if "://" in source and (is_pattern(source) or is_shard(split_query(source)[0])):
        return None
    for name in info_json.NAMES:
        if "://" in source:
            remote = FsspecClient(source)
            where, data = f"{remote.url}/{name}", remote.read(name, MAX_JSON)
        else:
            path = Path(source) / name
            there = paths.exists(source, folder=True) and path.is_file()
            data, where = _read_info(path) if there else None, str(path)
        if data is not None and (name == info_json.NAME or info_json.has_splits(data)):
            return info_json.parse(data, where)
    return None


def _read_info(path: Path) -> bytes | None:
    """Read a description; None if it is another tool's `info.json`, too large to be one."""
    if (size := path.stat().st_size) <= MAX_JSON:
        return path.read_bytes()
    if path.name != info_json.NAME:
        return None
    raise DataError(
        f"{path} has {size:,} bytes, {MAX_JSON:,} are the most of a description. Correct it, or "
        "name the shards by a pattern."
    )


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


def is_pattern(source: str) -> bool:
    """Check if a source is a pattern of names; a question mark in a URL begins its query."""
    if "://" in source:
        return any(c in source.partition("?")[0] for c in "*[{")
    return any(c in source for c in "*?[{") and not paths.exists(source)


def find_local(source: str, split: str) -> ShardSource | None:
    """Find the shards of a local source; None if it is a folder of images."""
    folder = Path(source)
    if is_pattern(source):
        return ShardSource("", _of_one_split(_matches(source), source))
    if folder.is_file():
        return ShardSource("", (source,))
    if not folder.is_dir():
        raise UsageError(f"there is no data set at {source}. DATA is a folder of shards or images.")
    info, root = describe(source), folder
    if info is None and (root := split_folder(folder, split)) != folder:
        _tell_of_others(folder)
        info = describe(str(root))
    if info is not None:
        found = info.need(split)
        absent = [name for name in found.filenames if not (root / name).is_file()]
        if absent:
            raise info_json.missing(info.where, found.filenames, absent)
        return ShardSource(str(root), found.filenames, info, found)
    if not (names := _shards(root)):
        return None
    if (image := image_folder.first_image(root)) is not None:
        if others := [name for name in names if not _is_unpacked(root, name)]:
            raise UsageError(
                f"{root} has {len(others):,} {'tables' if is_table(names[0]) else 'tars'} "
                f"({others[0]}) and images ({image}). Move one or the other elsewhere; the "
                f"pattern '{root}/*{Path(others[0]).suffix}' selects the former alone."
            )
        log.info("%s: passed over: %d tars that its folders are the contents of (first: %s)",
                 root, len(names), printable(names[0]))  # fmt: skip
        return None
    if root == folder and (words := _by_word(names, source)):
        names = info_json.choose(words, split, source)
    return ShardSource("", tuple(str(root / name) for name in _complete(names, str(root))))


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
    """Return the sub-folder of this split, or the folder itself if it has none of any split.

    Raises:
        UsageError: It has those of other splits only, or several of this one.
    """
    found = split_folders(folder)
    return folder / info_json.choose(found, split, str(folder))[0] if found else folder


def split_folders(folder: Path) -> dict[str, list[str]]:
    """Return the sub-folders that are splits, by the word in their names.

    Raises:
        UsageError: They may be classes as well.
    """
    below = [entry.name for entry in image_folder.entries(folder)
             if entry.is_dir() and not image_folder.is_hidden(entry.name)]  # fmt: skip
    named = [name for name in below if _YEAR.sub("", name.lower()) in info_json.WORDS]
    others = [name for name in below if name not in named]
    if not named:
        likely = [name for name in below if split_words(name)]  # train_images, val_images
        if len({*map(_split_of, likely)}) > 1 and (
            likely == below or _alike(folder, likely, below)
        ):
            named = likely
    elif named and all(image_folder.first_image(folder / name, deep=False) for name in named):
        flat = [n for n in others if image_folder.first_image(folder / n, deep=False)]
        if flat:
            raise UsageError(
                f"{folder} has images in {', '.join(named)} and in {', '.join(flat[:3])}: are the "
                f"first splits, or are all of them classes? Pass {folder / named[0]}, or "
                "move the class folders into a folder named train."
            )
    seen = {(folder / name).resolve(): name for name in reversed(named)}  # links to one are one
    return _by_word([name for name in named if name in seen.values()], str(folder))


def _alike(folder: Path, likely: Sequence[str], below: Sequence[str]) -> bool:
    """Check if folders have one name but for the split, and none beside them is a class."""
    rest = {re.sub("|".join(split_words(name)), "", name.lower()) for name in likely}
    return len(rest) == 1 and not any(
        image_folder.first_image(folder / name, deep=False) for name in below
    )


def _tell_of_others(folder: Path) -> None:
    """Log how many folders beside those of splits are passed over."""
    splits = {name for names in split_folders(folder).values() for name in names}
    others = [entry.name for entry in image_folder.entries(folder)
              if entry.is_dir() and not image_folder.is_hidden(entry.name)
              and entry.name not in splits]  # fmt: skip
    if others:
        log.info("%s: folders that are no splits, passed over: %d (first: %s)",
                 folder, len(others), printable(others[0]))  # fmt: skip


def _split_of(name: str) -> str:
    return next(s for s, words in SPLITS.items() if split_words(name).intersection(words))


def _by_word(names: Sequence[str], source: str) -> dict[str, list[str]]:
    """Group names by the word for a split in them; empty if there is none in any.

    Raises:
        UsageError: Some have none, or more than one.
    """
    words = [_words(name) for name in names]
    if not any(words):
        return {}
    common = set.intersection(*words)
    if len(names) > 1 and all(found > common for found in words):
        words = [found - common for found in words]
    found: dict[str, list[str]] = {}
    for name, each in zip(names, words, strict=True):
        found.setdefault(each.pop() if len(each) == 1 else "", []).append(name)
    if unclear := found.get(""):
        raise UsageError(
            f"the split of {unclear[0]} in {source} does not follow from its name, as that of "
            "others does. Pass a pattern, such as 'FOLDER/train-*.tar', or its folder."
        )
    return found


def _words(name: str) -> set[str]:
    """Words for a split in the name of a shard, or else in that of its folder."""
    *_, folder, file = ["", *name.split("/")]
    return split_words(file) or split_words(folder)


def _of_one_split(names: list[str], source: str) -> tuple[str, ...]:
    """Names of a pattern; UsageError if they are files of rows of several splits."""
    found = {word for name in names if is_table(name) for word in _words(name)}
    if len(found) > 1:
        raise UsageError(
            f"{source} has files of several splits: {', '.join(sorted(found))}. Name one of them, "
            f"such as {min(found)}-*{Path(names[0]).suffix}."
        )
    return tuple(names)


def _complete(names: list[str], source: str) -> list[str]:
    """Names of a folder's files; UsageError if a file of rows with a number is missing."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for found in filter(None, map(_NUMBERED.fullmatch, filter(is_table, names))):
        numbers.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (start, count), there in numbers.items():
        if len(there) < count:
            absent = next(number for number in range(count) if number not in there)
            raise UsageError(
                f"{len(there):,} of the {count:,} files {start}…-of-{count} of {source} are there, "
                f"number {absent} is the first that is missing. Fetch it, or name files by a "
                "pattern."
            )
    return names


def _shards(folder: Path) -> list[str]:
    """Tars in a folder, or else its files of rows, at any depth where it has no images."""
    here = [e.name for e in image_folder.entries(folder)
            if is_shard(e.name) and not image_folder.is_hidden(e.name)]  # fmt: skip
    if tars := [name for name in here if not is_table(name)]:
        return tars
    if image_folder.first_image(folder) is not None:
        return [name for name in here if rows.has_images(folder / name)]
    below = sorted(path.relative_to(folder) for path in folder.rglob("*") if is_table(path.name))
    visible = [path for path in below if not any(map(image_folder.is_hidden, path.parts))]
    return _one_table([path.as_posix() for path in visible], str(folder))


def _one_table(names: list[str], source: str) -> list[str]:
    """Files of rows below a folder; UsageError if they are of several data sets."""
    if indices := [name for name in names if name.rpartition("/")[2].startswith("indices")]:
        raise UsageError(
            f"{source} is a selection of rows ({indices[0]}), not all of its files' rows. Write "
            "these alone: datasets.load_from_disk(…).flatten_indices().save_to_disk(…)."
        )
    folders = {name.rpartition("/")[0] for name in names}
    folders = {f.rpartition("/")[0] if split_words(f.rpartition("/")[2]) else f for f in folders}
    if len(folders) > 1:
        shown = ", ".join(map(printable, sorted(folders)[:_SHOWN]))
        raise UsageError(
            f"{source} has files of rows in several folders: {shown}. Name the one that is meant: "
            f"{source}/{max(folders)}."
        )
    return names


def _is_unpacked(folder: Path, name: str) -> bool:
    """Check if a tar is the archive that folders beside it were unpacked from."""
    return bool(_ILSVRC.fullmatch(name)) or (folder / name.partition(".tar")[0]).is_dir()


def _remote_tars(remote: FsspecClient, folder: str) -> list[str]:
    return [name for name in remote.find(f"{folder}*.t*") if is_shard(name)]


def _remote_tables(remote: FsspecClient) -> list[str]:
    """Files of rows at the first depth below a URL that has any."""
    for depth in range(_DEPTH):
        found = remote.find("*/" * depth + "*.parquet") + remote.find("*/" * depth + "*.arrow")
        if names := [name for name in found if is_table(name)]:
            return _one_table(names, remote.url)
    return []


def _folders(remote: FsspecClient) -> list[str]:
    return [name for name in remote.find("*") if _YEAR.sub("", name.lower()) in info_json.WORDS]


def find_remote(source: str, split: str) -> ShardSource:
    """Find the shards of a URL; UsageError if there are none."""
    if (info := describe(source)) is not None:
        found = info.need(split)
        return ShardSource(source, found.filenames, info, found)
    path, query = split_query(source)
    root, pattern = _split_pattern(path.rstrip("/"))
    if "*" in pattern:
        names = list(_of_one_split(FsspecClient(root + query).find(pattern), source))
    elif is_pattern(source):
        names = list(_of_one_split(info_json.expand(pattern), source))
    elif is_shard(pattern):
        names = [pattern]
    else:
        root, remote = path, FsspecClient(source)
        names = _remote_tars(remote, "")
        if not names and (folders := _by_word(_folders(remote), remote.url)):
            chosen = info_json.choose(folders, split, remote.url)[0]
            if describe(below := f"{path}/{chosen}{query}") is not None:
                return find_remote(below, split)
            names = _remote_tars(remote, f"{chosen}/")
        elif words := _by_word(names, remote.url):
            names = info_json.choose(words, split, remote.url)
        if not names and (names := _remote_tables(remote)):
            words = _by_word(names, remote.url)
            names = info_json.choose(words, split, remote.url) if words else names
            names = _complete(names, remote.url)
    if not names:
        raise UsageError(
            f"there are no shards at {without_secrets(source)}: no {info_json.NAME}, and no tar or "
            "Parquet file that can be listed. Name them by a pattern such as "
            "URL/train-{0000..0127}.tar."
        )
    return ShardSource(root + query, tuple(names))


def _split_pattern(url: str) -> tuple[str, str]:
    """Split a URL before its first part that has a pattern, or before its last."""
    scheme, mark, rest = url.partition("://")
    parts = rest.split("/")
    patterns = [i for i, part in enumerate(parts) if any(c in part for c in "*[{")]
    at = max(1, min([*patterns, len(parts) - 1]))
    return f"{scheme}{mark}{'/'.join(parts[:at])}", "/".join(parts[at:])
