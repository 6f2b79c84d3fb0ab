"""ReaL labels: all correct classes of every image of ImageNet's validation split.

Beyer et al., "Are we done with ImageNet?" (arXiv 2006.07159). The published file is a list: entry i
has the classes of ILSVRC2012_val_{i + 1:08d}, and is empty where the annotators agreed on none. An
object of such lists by file name serves other data sets.

timm contains that list (`timm.data.RealLabelsImagenet`), and "timm" as a file's name takes it from
there. timm's scorer itself requires all 50,000 images, in one order and under their full names;
here an image is found by its key, so that shards, folders and subsets are possible.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from timm.data import RealLabelsImagenet

from cache_tools.data.images import ImageDataset
from cache_tools.data.tar_samples import IMAGES
from cache_tools.errors import CacheMismatch, UsageError
from cache_tools.file_contents import parse_json, read_text

BUILT_IN = "timm"
_OF_TIMM = 50_000
_IMAGENET = re.compile(r"(ILSVRC2012_val_\d{8})(_n\d{8})?")  # the Hub's files end with the class

RealLabels = Mapping[str, frozenset[int]]
"""Right classes of an image by its file name without folder and extension; may be empty."""


def load(source: str) -> RealLabels:
    """Read a file of ReaL labels.

    Args:
        source: The published `real.json`, an object {file name: [class, …]}, or "timm".

    Raises:
        UsageError: There is no such file, or its content differs.
    """
    if source == BUILT_IN:
        return _checked(RealLabelsImagenet(range(_OF_TIMM)).real_labels, source)
    try:
        value = parse_json(read_text(Path(source)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the ReaL labels {source} cannot be read ({error}). Pass --real with the published "
            f"real.json, or --real {BUILT_IN} for the copy that comes with timm."
        ) from None
    if isinstance(value, list):
        value = {f"ILSVRC2012_val_{i + 1:08d}": labels for i, labels in enumerate(value)}
    return _checked(value, source)


def of(labels: RealLabels, images: ImageDataset, num_classes: int) -> list[frozenset[int]] | None:
    """Right classes of every image; None if the labels contain none of them.

    Raises:
        CacheMismatch: They contain some of the images only.
        UsageError: They contain classes that the networks do not have.
    """
    stems = [_stem(name) for name in images.names]
    missing = [stem for stem in stems if stem not in labels]
    if len(missing) == len(stems):
        return None
    if missing:
        raise CacheMismatch(
            f"the ReaL labels lack {len(missing):,} of the {len(stems):,} images of "
            f"{images.source} (first: {missing[0]!r}). Pass the whole file, or the data set it is "
            "of."
        )
    highest = max((max(labels[stem], default=0) for stem in stems), default=0)
    if highest >= num_classes:
        raise UsageError(
            f"the ReaL labels contain class {highest}, the networks have {num_classes}. They are "
            "of ImageNet-1k: leave out --real."
        )
    return [labels[stem] for stem in stems]


def _checked(value: Any, source: str) -> RealLabels:
    """Check and convert a mapping of lists of class numbers."""
    if isinstance(value, Mapping) and all(
        isinstance(labels, list) and all(type(c) is int and c >= 0 for c in labels)
        for labels in value.values()
    ):
        return {_stem(str(name)): frozenset(labels) for name, labels in value.items()}
    raise UsageError(
        f"{source} contains no ReaL labels. Expected a list with a list of classes for every "
        "validation image, as published, or an object {file name: [class, …]}."
    )


def _stem(name: str) -> str:
    """Name of an image without folder and extension; of ImageNet's without the class."""
    file = PurePosixPath(name)
    stem = file.stem if file.suffix.lower() in IMAGES else file.name
    found = _IMAGENET.fullmatch(stem)
    return found[1] if found else stem
