"""A folder of images: what is listed, what is passed over, and the classes of its folders.

Nothing is left out in silence: a folder that cannot be listed is an error (labels would move), and
files that are no images are counted in the log. A folder that several links lead to is read once. A
link that leads nowhere is an image of 0 bytes, which is named when it is read.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cache_tools.data import ilsvrc
from cache_tools.data.images import ImageDataset, class_folders, class_numbers
from cache_tools.data.info_json import SPLITS, split_words
from cache_tools.data.tar_samples import IMAGES
from cache_tools.errors import DataError, UsageError
from cache_tools.runtime.text import counted, printable
from cache_tools.spec.dataset import NO_LABEL

log = logging.getLogger("kdcache")
SHEET = "kdcache contact sheet"
"""Comment in every contact sheet, so that none becomes a sample."""
_SYSTEM = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
_OWN = (".kdx", ".partial", ".lock", ".beton", "_info.json")
_OURS = "of kdcache itself"
LAYOUTS = (
    "Pass a folder of images (JPEG, PNG, WebP, AVIF, BMP, PNM or TIFF; a folder for each class, or "
    "none), of WebDataset tars, or of Parquet or Arrow files, or a .beton. ILSVRC's tars of tars "
    "become shards by: kdcache shard SRC DST."
)
"""Layouts of a data set, for messages."""
_FEW = 100
"""Images outside of all folders of which each is looked at, for it may be a contact sheet."""
_SHOWN = 5


def open_folder(
    root: Path, source: str, split: str, classes: Sequence[str] = (), nested: bool = True
) -> ImageDataset:
    """Open a folder of images, whose folders are classes.

    Args:
        root: The folder, which is the split's where there are splits.
        source: Path that was opened, for messages.
        split: Name of the split.
        classes: Names of the classes of the training split; empty: unknown.
        nested: False if `root` is a split itself, within which no splits are looked for.

    Raises:
        DataError: It cannot be listed, or has no image.
        UsageError: There are splits deeper in it, or a file of labels does not fit.
    """
    passed: Counter[str] = Counter()
    entries = sorted(_images(root, passed), key=lambda found: found[0].split("/"))
    summary = ", ".join(f"{n:,} {printable(kind)}" for kind, n in passed.most_common())
    if passed:
        log.info("%s: passed over: %s", root, summary)
    if not entries:
        found = f" There are others: {summary}." if passed else ""
        raise DataError(f"there is no image in {source} ({split} split).{found} {LAYOUTS}")
    names = [file.rpartition(".")[0] for file, _ in entries]
    if nested:
        _refuse_nested(names, source)
    folders = class_folders(names)
    number, class_names = class_numbers({*folders} - {""}, split == "train", classes)
    if number and (stray := [file for file, _ in entries if "/" not in file]):
        shown = ", ".join(map(printable, stray[:_SHOWN])) + ", …" * (len(stray) > _SHOWN)
        log.warning(
            "%s: %s beside its class folders without a class: %s. Move them elsewhere, or into the "
            "folder of their class.", root, counted(len(stray), "image"), shown,
        )  # fmt: skip
    images = ImageDataset(
        source,
        [root / file for file, _ in entries],
        names,
        np.arange(len(entries), dtype=np.int32),
        np.zeros(len(entries), dtype=np.int64),
        np.array([size for _, size in entries], dtype=np.int64),
        np.array([number.get(folder, NO_LABEL) for folder in folders], dtype=np.int32),
        class_names,
        sharded=False,
    )
    if len({*folders}) > 1 or (labels := _label_file(root, split, nested)) is None:
        return images
    try:
        images = ilsvrc.with_labels(images, labels, classes)
        log.info("%s: labels are those of %s", root, labels)
    except UsageError as error:
        log.warning("%s: without labels, for %s", root, error)
    return images


def class_names(root: Path, split: str) -> tuple[str, ...]:
    """Return the names of the classes of a folder of images; none where they are numbers."""
    names = [file for file, _ in _images(root, Counter())]
    return class_numbers({*class_folders(names)} - {""}, split == "train")[1]


def first_image(root: Path, deep: bool = True) -> str | None:
    """Return the path of some image in a folder, at any depth or directly in it, or None."""
    return next((file for file, _ in _images(root, Counter(), deep)), None)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder in the order of the names.

    Raises:
        DataError: It cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def is_hidden(name: str) -> bool:
    """Check if a file or folder is one of the system's, not of the data set's."""
    return name.startswith(".") or name in _SYSTEM


def _images(root: Path, passed: Counter[str], deep: bool = True) -> Iterator[tuple[str, int]]:
    """Yield the path of each image below `root`, and its bytes; counts what is passed over."""
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        if not folders:  # folders themselves come before links to them
            folders, links = sorted(links, reverse=True), []
        prefix = folders.pop()
        found = entries(root / prefix)
        identity = (root / prefix).stat()
        own = bool(prefix) and any(entry.name == "zarr.json" for entry in found)
        if own or (identity.st_dev, identity.st_ino) in seen:
            passed[_OURS if own else "folders linked again"] += 1
            continue
        seen.add((identity.st_dev, identity.st_ino))
        sheets = set() if prefix else _sheets(found)
        for entry in found:
            path = f"{prefix}{entry.name}"
            try:
                if (kind := _passed_over(entry)) or entry.name in sheets:
                    passed[kind or _OURS] += 1
                elif not entry.is_dir():
                    yield path, entry.stat().st_size if Path(entry.path).exists() else 0
                elif deep:
                    (links if entry.is_symlink() else folders).append(f"{path}/")
            except OSError as error:
                raise _unreadable(Path(entry.path), error) from None


def _passed_over(entry: os.DirEntry[str]) -> str:
    """Return the kind of a file or folder that is no part of a data set; "" for a part."""
    if is_hidden(entry.name):
        return "hidden"
    if entry.name.endswith(_OWN) or entry.name.startswith("_shards-"):
        return _OURS
    if entry.is_dir():
        return ""
    extension = Path(entry.name).suffix.lower()
    if extension not in IMAGES:
        return extension or "without extension"
    return "" if entry.is_file() or not Path(entry.path).exists() else "pipes and devices"


def _sheets(found: Sequence[os.DirEntry[str]]) -> set[str]:
    """Names of the contact sheets among the files of a folder, if it has few images."""
    images = [e for e in found if Path(e.name).suffix.lower() in IMAGES and e.is_file()]
    if len(images) > _FEW:
        return set()
    sheets = set()
    for entry in images:
        with Path(entry.path).open("rb") as file:
            if SHEET.encode() in file.read(1024):
                sheets.add(entry.name)
    return sheets


def _refuse_nested(names: Sequence[str], source: str) -> None:
    """Raise UsageError if folders deeper in the data set are splits, as in ILSVRC's tree."""
    parents = sorted({name.rpartition("/")[0] for name in names})
    below: dict[str, dict[str, bool]] = {}  # folder → split folders in it → has folders of its own
    for parent in parents:
        parts = parent.split("/")
        for depth, name in enumerate(parts):
            if depth and split_words(name) == {name.lower()}:
                inner = below.setdefault("/".join(parts[:depth]), {})
                inner[name] = inner.get(name, False) or depth < len(parts) - 1
    for folder, splits in below.items():
        if len(splits) > 1 or any(splits.values()):
            raise UsageError(
                f"{source} has the splits {', '.join(splits)} in its folder {folder}. Pass "
                f"{source}/{folder}, or the folder of one split."
            )


def _label_file(root: Path, split: str, nested: bool) -> Path | None:
    """Find the file of labels of images without class folders: Tiny-ImageNet's, or Caffe's."""
    names = [f"{word}.txt" for word in SPLITS[split]]
    paths = [root / "val_annotations.txt", *(root / name for name in names)]
    if not nested:
        paths.append(root.with_name(f"{root.name}.txt"))
    return next((path for path in paths if path.is_file()), None)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read {path}: {error.strerror}. Without it samples would be missing and classes "
        "have other numbers. Make it readable, or take it out of the data set."
    )
