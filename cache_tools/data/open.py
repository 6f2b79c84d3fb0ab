"""Open a data set by its source: shards, a folder of images, a `.beton` or a URL.

The kind of a source follows from its name and its contents. This module builds on all kinds
of data sets, and none of them on it.
"""

import os
from pathlib import Path

import numpy as np

from cache_tools.data import beton, info_json, local_index, sources
from cache_tools.data.images import ImageDataset, classes
from cache_tools.data.remote_shards import RemoteShards
from cache_tools.data.sources import describe, resolve
from cache_tools.data.tar_index import IMAGES, TarIndex
from cache_tools.errors import DataError
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.storage.fsspec_client import FsspecClient

__all__ = ["describe", "has_split", "open_images", "resolve"]


def open_images(source: str, split: str, containers: bool = True) -> ImageDataset:
    """Open a data set.

    Args:
        source: A folder (of tars, of images, or of splits), a tar, a glob or a brace pattern of
            tars; a `.beton`; or a URL of a folder or of tars that fsspec can read.
        split: "train", "validation" or "teacher": the part of a data set that has parts.
        containers: True if a `.beton` in a folder replaces the files beside it.

    Raises:
        UsageError: Nothing there, or not all of it.
        DataError: A shard that cannot be read, or no image in it.
    """
    if "://" in source:
        place = sources.find_remote(source, split)
        remote = RemoteShards(FsspecClient(place.root), place.names, source)
        images = _indexed(source, place, [], remote.indices(place.split.indexed), remote)
    elif containers and (file := beton.find(source, split)) is not None:
        return beton.open_beton(file)
    elif (shards := sources.find_local(source, split)) is not None:
        paths = [Path(shards.root) / name for name in shards.names]
        images = _indexed(source, shards, paths, local_index.indices(paths), None)
    else:
        images = _folder(source, split)
    if len(images) == 0:
        raise DataError(f"there is no image in {source} ({split} split).")
    return images


def has_split(source: str, split: str) -> bool:
    """Check if the data set at `source` has images of its own for `split`."""
    if "://" not in source and (file := beton.find(source, split)) is not None:
        return split == "train" or file != Path(source)
    return sources.has_split(source, split)


def _indexed(
    source: str,
    place: sources.ShardSource,
    paths: list[Path],
    found: list[TarIndex],
    remote: RemoteShards | None,
) -> ImageDataset:
    """Join the indices of shards to one data set."""
    counts = [len(index.names) for index in found]
    if place.info is not None and place.split.lengths:
        info_json.check_counts(place.info.where, place.split, place.names, counts)
    crc = [index.crc_N for index in found if index.crc_N is not None]
    return ImageDataset(
        source,
        paths,
        [name for index in found for name in index.names],
        np.repeat(np.arange(len(found), dtype=np.int32), counts),
        np.concatenate([index.offset_N for index in found]),
        np.concatenate([index.length_N for index in found]),
        np.concatenate([index.label_N for index in found]),
        place.info.class_names if place.info is not None else (),
        crc_N=np.concatenate(crc) if remote is not None else None,
        remote=remote,
    )


def _folder(source: str, split: str) -> ImageDataset:
    """Open an ImageFolder: the first level of folders names the classes."""
    root = sources.split_folder(Path(source), split)
    files = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGES and not name.startswith(".")
    )
    folders = [file.relative_to(root).parts[0] for file in files if file.parent != root]
    number, class_names = classes(set(folders)) if len(folders) == len(files) else ({}, ())
    names, rows = [], []
    for i, file in enumerate(files):
        relative = file.relative_to(root)
        names.append(relative.with_suffix("").as_posix())
        rows.append((i, file.stat().st_size, number.get(relative.parts[0], NO_LABEL)))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    zeros = np.zeros(len(rows), dtype=np.int64)
    where, label = columns[:, 0].astype(np.int32), columns[:, 2].astype(np.int32)
    return ImageDataset(
        source, files, names, where, zeros, columns[:, 1], label, class_names, sharded=False
    )
