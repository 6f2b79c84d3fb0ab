"""Open a data set by its source: shards, a folder of images, a `.beton` or a URL.

The kind of a source follows from its name and its contents. This module builds on all kinds
of data sets, and none of them on it.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache_tools.columnar import rows
from cache_tools.columnar.layout import Columns, Layout
from cache_tools.config import nearest
from cache_tools.data import image_folder, info_json, local_index, sources, unpacked
from cache_tools.data.beton import reader
from cache_tools.data.images import NO_CRC, ImageDataset, class_numbers, with_classes
from cache_tools.data.remote_shards import RemoteShards
from cache_tools.data.sources import describe, resolve
from cache_tools.errors import DataError, KdcacheError, UsageError
from cache_tools.numerics import text_column
from cache_tools.numerics.text_column import TextColumn
from cache_tools.runtime.text import counted
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.storage import disk_cache
from cache_tools.storage.disk_cache import DiskCache
from cache_tools.storage.fsspec_client import FsspecClient, without_secrets
from cache_tools.storage.paths import exists, expand

log = logging.getLogger("kdcache")
__all__ = ["describe", "has_split", "open_images", "resolve"]


def open_images(
    source: str,
    split: str,
    containers: bool = True,
    shard_keys: bool = False,
    classes: Sequence[str] | None = None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
) -> ImageDataset:
    """Open a data set.

    Args:
        source: A folder (of tars, of Parquet or Arrow files, of images, or of splits), a file, a
            glob or a brace pattern of shards; a `.beton`; or a URL of such that fsspec can read.
        split: "train", "validation" or "teacher": the part of a data set that has parts.
        containers: True if a `.beton` in a folder replaces the files beside it, when it is of them.
        shard_keys: True if the name of a sample begins with that of its shard: for shards whose
            keys begin anew in each.
        classes: Names of the classes of the training split, which rule every split; None: those of
            the training split of `source`, if it has one.
        columns: Names of the columns of Parquet and Arrow files.

    Raises:
        UsageError: Nothing there, not all of it, or several things that may be meant.
        DataError: A shard or folder that cannot be read, or no image in it.
        CacheMismatch: It has classes that the training split has not.
    """
    if split not in info_json.SPLITS:
        raise UsageError(f"{split!r} is no split. {nearest(split, info_json.SPLITS)}")
    if containers and "://" not in source and (file := reader.find(source, split)) is not None:
        _check_options(source, "a .beton", shard_keys, columns)
        opened = reader.open_beton(file)
        if Path(source).is_dir() and (beside := _beside(source, split)) is not None:
            return beside if _warns_of_difference(opened, beside) else opened
        return opened
    source, layout = source if "://" in source else expand(source), None
    given = source
    if "://" in source:
        place, source = sources.find_remote(source, split), without_secrets(source)
        client = FsspecClient(place.root)
        layout = _remote_layout(client, place, columns)
        if any(map(unpacked.is_packed, place.names)):
            paths = unpacked.of_url(client, place.names, layout)
            images = _indexed(place, paths, source, shard_keys)
        else:
            remote = RemoteShards(client, place.names, source)
            images = _indexed(place, [], source, shard_keys, remote)
    elif (shards := sources.find_local(source, split)) is not None:
        paths = [Path(shards.root) / name for name in shards.names]
        layout = rows.layout_of_file(paths[0], columns) if _is_of_rows(shards) else None
        images = _indexed(shards, unpacked.of_files(paths, layout), source, shard_keys)
    else:
        _check_options(source, "a folder of images", shard_keys, columns)
        root = sources.split_folder(Path(source), split)
        classes = _training_classes(source, split) if classes is None else classes
        images = image_folder.open_folder(root, source, split, classes, root == Path(source))
        _warn_of_own_classes(images, split, classes)
    if len(images) == 0:
        raise DataError(f"there is no image in {source} ({split} split). {image_folder.LAYOUTS}")
    if layout is None:
        _check_options(source, "tars", False, columns)
    else:
        _check_options(source, "a table", shard_keys, Columns())
        images, classes = _of_rows(images, layout, split, classes, given)
    _check_names(images)
    return with_classes(images, classes or ())


def find_tars(source: str, split: str) -> tuple[list[Path], str] | None:
    """Find the plain tars of a data set on this machine, and a digest of them as they are.

    The digest is of their names, sizes, inodes and times of change, and of their description: an
    index of the data set that was made of it is one of the same files. None for other data sets.

    Raises:
        DataError: A tar is not there.
    """
    if "://" in source or reader.find(source, split) is not None:
        return None
    if (shards := sources.find_local(expand(source), split)) is None:
        return None
    if any(map(unpacked.is_packed, shards.names)):
        return None
    paths = [Path(shards.root) / name for name in shards.names]
    try:
        keys = [disk_cache.file_key(path) for path in paths]
    except OSError as error:
        raise DataError(f"cannot read the shard {error.filename}: {error.strerror}.") from None
    copies = DiskCache()
    return None if any(map(copies.is_copy, paths)) else (paths, disk_cache.key(shards, *keys))


def has_split(source: str, split: str) -> bool:
    """Check if the data set at `source` has images of its own for `split`."""
    if "://" not in source and (file := reader.find(source, split)) is not None:
        return split == "train" or file != Path(source)
    return sources.has_split(source, split)


def _check_options(source: str, kind: str, shard_keys: bool, columns: Columns) -> None:
    """Raise UsageError for an option that this kind of source has no use for."""
    if columns != Columns():
        raise UsageError(f"--columns is of tables, and {source} is {kind}. Leave it out.")
    if shard_keys:
        raise UsageError(f"--key shard/key is of tars, and {source} is {kind}. Leave it out.")


def _beside(source: str, split: str) -> ImageDataset | None:
    """Open the shards or images beside a `.beton` in a folder; None if there are none."""
    if split != "train" and not sources.has_split(source, split):
        return None
    try:
        return open_images(source, split, containers=False)
    except KdcacheError:
        return None


def _warns_of_difference(container: ImageDataset, beside: ImageDataset) -> bool:
    """Warn if a container has other names, labels or sizes than the files beside it."""
    one, other = (
        set(zip(d.names, d.label_N.tolist(), d.length_N.tolist(), strict=True))
        for d in (container, beside)
    )
    if different := one ^ other:
        name, label, _ = min(different)
        log.warning(
            "%s is not used: %d images, labels or sizes differ from the files beside it (first: "
            "%s, label %d). Write it again: kdcache beton SRC FILE",
            container.source,
            len({each[0] for each in different}),
            name,
            label,
        )
    return bool(different)


def _is_of_rows(place: sources.ShardSource) -> bool:
    """Check if shards are files of rows; UsageError if some are."""
    kinds = {rows.is_table(name) for name in place.names}
    if len(kinds) > 1:
        raise UsageError(
            f"there are tars and files of rows at {place.root or place.names[0]}: name those of "
            "one kind by a pattern."
        )
    return True in kinds


def _remote_layout(
    client: FsspecClient, place: sources.ShardSource, columns: Columns
) -> Layout | None:
    """Read the layout of files of rows behind a URL from the first of them; None of tars."""
    if not _is_of_rows(place):
        return None
    name = place.names[0]
    if (found := client.stat(name)) is None:
        raise info_json.missing(client.url, place.names, [name])
    return rows.read_layout(
        lambda begin, end: client.part(name, begin, end, found[0]),
        found[0],
        f"{client.url}/{name}",
        columns,
    )


def _of_rows(
    images: ImageDataset, layout: Layout, split: str, classes: Sequence[str] | None, source: str
) -> tuple[ImageDataset, Sequence[str]]:
    """Name the samples of files of rows, and number their classes where these are text.

    Returns:
        The images, and the classes of the training split where they are known.
    """
    if classes is None:
        classes = () if split == "train" else _classes_of_training_rows(source, layout)
    if layout.other_path:
        log.info("%s: %s.path is %s, which is not read: paths are text",
                 images.source, layout.image, layout.other_path)  # fmt: skip
    names, labels = rows.named(images.names, layout.text, images.source)
    images = replace(images, names=names, class_names=layout.class_names)
    if not layout.label:
        log.warning("%s: no column of labels: its images have none", images.source)
    if not layout.text:
        return images, classes
    number, class_names = class_numbers({*labels} - {""}, split == "train", classes)
    label_N = np.array([number.get(label, NO_LABEL) for label in labels], dtype=np.int32)
    images = replace(images, label_N=label_N, class_names=class_names)
    _warn_of_own_classes(images, split, classes)
    return images, classes


def _warn_of_own_classes(images: ImageDataset, split: str, classes: Sequence[str] | None) -> None:
    """Warn where the classes of a split are numbered without those of the training split."""
    if split != "train" and images.class_names and not classes:
        log.warning(
            "%s: %s numbered as in this split alone: the training split's names are unknown",
            images.source, counted(len(images.class_names), "class"),
        )  # fmt: skip


def _indexed(
    place: sources.ShardSource,
    paths: list[Path],
    source: str,
    shard_keys: bool,
    remote: RemoteShards | None = None,
) -> ImageDataset:
    """Join the indices of shards to one data set."""
    found = remote.indices(place.split.indexed) if remote else local_index.indices(paths)
    counts = [len(index.names) for index in found]
    if place.info is not None and place.split.lengths:
        info_json.check_counts(place.info.where, place.split, place.names, counts)
    passed = sum((Counter(index.passed) for index in found), Counter[str]())
    if passed:
        shown = ", ".join(f"{n:,} {kind}" for kind, n in passed.most_common())
        log.info("%s: neither image nor label, passed over: %s", source, shown)
    if not any(counts):
        raise DataError(
            f"there is no image in {source}: {len(found):,} shards have none, the first is "
            f"{place.names[0]}. {image_folder.LAYOUTS}"
        )
    copies = DiskCache()
    checked = [remote is not None or copies.is_copy(paths[i]) for i in range(len(found))]
    crc = [
        np.full(len(index.names), NO_CRC) if index.crc_N is None or not known else index.crc_N
        for index, known in zip(found, checked, strict=True)
    ]
    if shard_keys:
        named = zip(_shard_names(place.names), found, strict=True)
        names = TextColumn.of([p + name for p, index in named for name in index.names])
    else:
        names = TextColumn.concatenate([text_column.of(index.names) for index in found])
    return ImageDataset(
        source,
        paths,
        names,
        np.repeat(np.arange(len(found), dtype=np.int32), counts),
        np.concatenate([index.offset_N for index in found]),
        np.concatenate([index.length_N for index in found]),
        np.concatenate([index.label_N for index in found]),
        place.info.class_names if place.info is not None else (),
        crc_N=np.concatenate(crc).astype(np.int64) if any(checked) else None,
        lead_N=np.concatenate([index.lead_N for index in found]) if any(checked) else None,
        remote=remote,
    )


def _shard_names(shards: Sequence[str]) -> list[str]:
    """Return the paths of shards below their common folder, without ends, as folders of keys."""
    common = os.path.commonpath([name.rpartition("/")[0] for name in shards])
    ends = "|".join(map(re.escape, sorted(unpacked.SHARDS, key=len, reverse=True)))
    return [
        re.sub(f"({ends})$", "", name.removeprefix(common).lstrip("/"), flags=re.IGNORECASE) + "/"
        for name in shards
    ]


def _training_classes(source: str, split: str) -> tuple[str, ...]:
    """Names of the classes of the training split, when it is a folder of images beside `split`."""
    if (
        split == "train"
        or not exists(source, folder=True)
        or not sources.has_split(source, "train")
    ):
        return ()
    root = sources.split_folder(Path(source), "train")
    return image_folder.class_names(root, "train") if root != Path(source) else ()


def _classes_of_training_rows(source: str, layout: Layout) -> tuple[str, ...]:
    """Names of the classes of the training split beside files of rows, whose layout this is."""
    if not (layout.text or layout.class_names):
        return ()
    if not sources.has_split(source, "train"):
        return ()
    if "://" in source:
        place = sources.find_remote(source, "train")
        training = _remote_layout(FsspecClient(place.root), place, layout.columns)
    else:
        shards = sources.find_local(source, "train")
        paths = [Path(shards.root) / name for name in shards.names] if shards is not None else []
        rowed = shards is not None and _is_of_rows(shards)
        training = rows.layout_of_file(paths[0], layout.columns) if rowed else None
    if training is None:
        return ()
    if not training.text:
        return training.class_names
    log.info("%s: its training split is opened for the class names", without_secrets(source))
    return open_images(source, "train", columns=layout.columns).class_names


def _check_names(images: ImageDataset) -> None:
    """Raise DataError if the name of a sample is no text: it could not be a key."""
    try:
        text_column.joined(images.names).decode()
    except UnicodeError:
        name = next(n for n in images.names if n.encode("utf-8", "ignore").decode() != n)
        raise DataError(
            f"the name {name.encode('utf-8', 'surrogateescape')!r} in {images.source} is not "
            "UTF-8. Rename the file, or write the tar again with names in UTF-8."
        ) from None
