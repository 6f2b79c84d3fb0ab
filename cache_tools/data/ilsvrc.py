"""ILSVRC 2012 as it is distributed: a training tar of tars, a validation tar without labels.

A class is its synset (n01440764), and the class *number* is the synset's place among all synsets in
sorted order: what an ImageFolder gives, and what timm's and torchvision's networks say. ILSVRC has
another number of its own, ILSVRC2012_ID 1..1000, in which kit fox (n02119789) is 1 and tench
(n01440764) is not; `ILSVRC2012_validation_ground_truth.txt` is written in it. What turns one into
the other is `meta.mat` of the development kit, so that this file is only read beside it.
"""

import io
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import tar_headers, tar_samples
from cache_tools.data.images import ImageDataset, natural_key, of_classes
from cache_tools.data.tar_headers import Member
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import decode_text, read_text
from cache_tools.runtime import progress
from cache_tools.spec.teacher import MAX_CLASSES

log = logging.getLogger("kdcache")
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_GZIP = b"\x1f\x8b"
_LABELS, _MOST_KIT, _MOST_META, _LONGEST_LINE = 2**24, 2**26, 2**19, 1024
"""Most bytes of a file of labels of few images, of the development kit unpacked (7 MB) and of its
table, which is compressed; most characters of a line with a label."""
_SYNSET = re.compile(r"n\d{8}")
_NAMED = re.compile(r"(?:\S*/)?([^\s,/]+?)(?:\.[A-Za-z]+)?[\s,]+([^\s,]+).*")
_DEVKIT = "the development kit (ILSVRC2012_devkit_t12.tar.gz)"


def is_tar_of_tars(path: Path) -> bool:
    """Check if the first file in a tar is a tar."""
    try:
        with path.open("rb") as file:
            first = next(tar_headers.members(file, 0, path.stat().st_size), None)
    except (OSError, ValueError):
        return False
    return first is not None and first.name.endswith(".tar")


def train(path: Path) -> ImageDataset:
    """Open a tar that holds a tar of images for each class; nothing is unpacked.

    Raises:
        DataError: It, or one of the tars in it, cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = list(tar_headers.members(file, 0, path.stat().st_size))
            inner = {m.name: m for m in found if m.name.endswith(".tar")}
            if others := [m.name for m in found if not m.name.endswith(".tar")]:
                log.info("%s: no tars, passed over: %d (first: %s)", path, len(others), others[0])
            classes = sorted(Path(name).name.removesuffix(".tar") for name in inner)
            if len(set(classes)) != len(classes) or len(inner) + len(others) != len(found):
                raise ValueError("two of its tars have one name")
            names, rows = _classes(file, inner, classes)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch it again.") from None
    offset, length, label = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    where = np.zeros(len(names), dtype=np.int32)
    return ImageDataset(
        str(path), [path], names, where, offset, length, label.astype(np.int32), tuple(classes)
    )


def _classes(
    file: BinaryIO, inner: dict[str, Member], classes: list[str]
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names, and rows (offset, length, label) of the images of all classes."""
    number = {name: i for i, name in enumerate(classes)}
    names, rows = [], []
    with progress.bar("read the headers", len(inner), "classes") as advance:
        for name, tar in inner.items():
            synset = Path(name).name.removesuffix(".tar")
            try:
                found = tar_headers.members(file, tar.offset, tar.offset + tar.length)
                samples, passed = tar_samples.samples(found)
            except ValueError as error:
                raise ValueError(f"{name} in it: {error}") from None
            if passed:
                log.info("%s: no images, passed over: %s", name, dict(passed))
            names += [f"{synset}/{sample.name}" for sample in samples]
            rows += [(s.image.offset, s.image.length, number[synset]) for s in samples]
            advance(1)
    return names, rows


def with_labels(images: ImageDataset, labels: Path, classes: Sequence[str]) -> ImageDataset:
    """Images without labels, labelled from a file of class names, numbers or ILSVRC's ground truth.

    Of images in class folders, the file lists the classes to take, in the order of their numbers.

    Args:
        images: The validation images, or images with classes.
        labels: A synset per line, in the order of the images' names; lines of a name and a class
            (Kaggle's, Tiny-ImageNet's `val_annotations.txt`) or its number from 0 (Caffe's
            `val.txt`); ILSVRC's ground truth with `meta.mat` beside it; or the development kit.
            Of images with classes, a class per line, as in timm's `imagenet12k_synsets.txt`.
        classes: Names of all classes, when they are known from the training split; else those in
            `labels` are taken for all.

    Raises:
        UsageError: Not such a file, or not of these images.
    """
    if not labels.is_file():
        raise UsageError(f"there is no file of labels at {labels}.")
    listed = _class_list(labels)
    if not {*listed}.isdisjoint(images.class_names):
        return of_classes(images, listed, labels)
    found, known = _read(labels, [name.rpartition("/")[2] for name in images.names])
    if not known <= {*classes} and all(map(str.isdecimal, known)):
        return replace(images, label_N=_numbers(found, labels, classes), class_names=tuple(classes))
    names = tuple(classes) or tuple(sorted(known, key=natural_key))
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(known - set(names)):
        raise UsageError(
            f"{labels} has the class {unknown[0]}, which is not among the {len(names):,} classes "
            "of the training split. Take the labels of the same data set."
        )
    label = np.array([number[name] for name in found], dtype=np.int32)
    return replace(images, label_N=label, class_names=names)


def _class_list(path: Path) -> list[str]:
    """Read the class in each line of a file, without the words behind a synset; none of others."""
    try:
        lines = [line.strip() for line in read_text(path, _LABELS).split("\n") if line.strip()]
    except (OSError, ValueError):  # the development kit
        return []
    found = [line.split()[0] if _SYNSET.match(line) else line for line in lines]
    return found if len({*found}) == len(found) else []


def _numbers(found: list[str], path: Path, classes: Sequence[str]) -> NDArray[np.int32]:
    """Convert class numbers of a file; UsageError if they number its lines instead."""
    if beyond := [number for number in found if int(number) >= MAX_CLASSES]:
        raise UsageError(f"{path} has the class {beyond[0][:40]}, {MAX_CLASSES:,} are possible.")
    numbers = np.array([int(number) for number in found])
    ranks = np.sort(numbers)
    counts = len(ranks) > max(len(classes), 1) and np.array_equal(ranks, np.arange(len(ranks)) + 1)
    if counts or (classes and ranks[-1] >= len(classes)):
        raise UsageError(
            f"the numbers in {path}, up to {ranks[-1]}, are no class numbers from 0 of "
            f"{len(classes) or 'all'} classes, as Caffe's are. Pass a file of class names."
        )
    return numbers.astype(np.int32)


def _read(path: Path, stems: list[str]) -> tuple[list[str], set[str]]:
    """Read the class of each image, and all classes."""
    with path.open("rb") as file:
        most = max(_LABELS, _LONGEST_LINE * len(stems))
        data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(
            f"{path} has more than {most:,} bytes, too many for the labels of {len(stems):,} "
            "images. Pass a file of a class for each."
        )
    if data.startswith(_GZIP) or data[257:262] == b"ustar":
        files = _devkit(path, data)
    else:
        files = {GROUND_TRUTH: data}
        meta = path.with_name(META)
        if meta.is_file() and meta.stat().st_size <= _MOST_META:
            files[META] = meta.read_bytes()
    lines = decode_text(files[GROUND_TRUTH], "replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    if longest := [line for line in lines if len(line) > _LONGEST_LINE]:
        raise UsageError(f"{path} has the line {longest[0][:40]!r}…, too long for a label.")
    if named := [found for line in lines if (found := _NAMED.fullmatch(line))]:
        label = {found[1]: found[2] for found in named}
        if absent := [stem for stem in stems if stem not in label]:
            raise UsageError(f"{path} has no label for {len(absent):,} images, first {absent[0]}.")
        return [label[stem] for stem in stems], {label[stem] for stem in stems}
    if len(lines) != len(stems):
        raise UsageError(f"{path} labels {len(lines):,} images, there are {len(stems):,}.")
    if all(_SYNSET.fullmatch(line) for line in lines):
        in_order, known = lines, set(lines)
    elif all(line.isdecimal() for line in lines):
        synset_of = _meta(path, files)
        if wrong := [line for line in lines if int(line) not in synset_of]:
            raise UsageError(f"{path}: there is no class {wrong[0]} in {META}.")
        in_order, known = [synset_of[int(line)] for line in lines], set(synset_of.values())
    else:
        raise UsageError(
            f"{path} has neither a synset (n01440764) in each line, nor a name and its class, nor "
            f"ILSVRC's numbers. Pass such a file, or {_DEVKIT}."
        )
    synset = dict(zip(sorted(stems), in_order, strict=True))
    return [synset[stem] for stem in stems], known


def _devkit(path: Path, data: bytes) -> dict[str, bytes]:
    """Read the two files in the development kit, a tar compressed by gzip or not."""
    try:
        if data.startswith(_GZIP):
            unpacked = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(data, _MOST_KIT)
        else:
            unpacked = data
        file, files = io.BytesIO(unpacked), dict[str, bytes]()
        for member in tar_headers.members(file, 0, len(unpacked)):
            name = member.name.rpartition("/")[2]
            if name in (GROUND_TRUTH, META) and not member.kind:
                files[name] = unpacked[member.offset : member.offset + member.length]
    except (ValueError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}). Pass {_DEVKIT}.") from None
    if len(files) < 2 or len(files[META]) > _MOST_META:
        raise UsageError(f"{path} does not hold {GROUND_TRUTH} and {META}. Pass {_DEVKIT}.")
    return files


def _meta(path: Path, files: dict[str, bytes]) -> dict[int, str]:
    """Synsets by ILSVRC's own numbers, of the classes that images have (those without children)."""
    if META not in files:
        raise UsageError(
            f"{path} has ILSVRC's own class numbers, not the places of the sorted synsets that "
            f"networks mean; {META} of the development kit has their classes. Pass {_DEVKIT}, or "
            "a file with a synset per line."
        )
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError(f"reading {META} needs scipy: pip install 'kdcache[ilsvrc]'.") from None
    try:
        table = loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
        leaves = table[table["num_children"].astype(int) == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # loadmat raises many kinds
        raise UsageError(f"{META} of {path} cannot be read ({error}). Fetch it again.") from None
