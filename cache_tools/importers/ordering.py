"""Order in which another system numbered the images of its data set."""

from collections.abc import Sequence
from pathlib import Path

from cache_tools.data.images import ImageDataset
from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import MAX_JSON, read_text
from cache_tools.spec.sample_table import MAX_KEY


def by_number(images: ImageDataset, index: Path | None) -> list[str]:
    """Return the names of the images in the order of their numbers.

    Args:
        images: The data set as it was opened.
        index: A file with a line per image; None: torchvision's ImageFolder, which sorts class
            folders and files, as this data set does when it is such a folder.

    Raises:
        UsageError: The images are in shards, whose order is not another system's.
        DataError: The file names other images.
    """
    if index is not None:
        return lines(index, images.names, images.source)
    if images.sharded or not images.class_names:
        raise UsageError(
            f"these files number their images, and {images.source} is no folder of classes: the "
            "order is unknown. Pass --dataset-index FILE with a line per image, such as "
            "n01440764/n01440764_10026.JPEG, in the order of torchvision's ImageFolder."
        )
    return list(images.names)


def lines(index: Path, names: Sequence[str], source: str) -> list[str]:
    """Return the names to which the lines of a file refer, each once.

    A line is a name, or a path that ends in one, with or without extension.

    Raises:
        UsageError: The file cannot be read.
        DataError: A line refers to no image, or an image has no line.
    """
    most = MAX_JSON + MAX_KEY * len(names)
    try:
        text = [line.strip() for line in read_text(index, most).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"--dataset-index {index} cannot be read: {error}.") from None
    stems = {name.rpartition("/")[2]: name for name in names}
    unique, known = len(stems) == len(names), set(names)
    found = []
    for number, line in enumerate(text):
        bare = line.rpartition(".")[0] if line.rpartition(".")[2].lower() in _SUFFIXES else line
        stem = bare.rpartition("/")[2]
        name = bare if bare in known else stems.get(stem) if unique else None
        if name is None:
            raise DataError(f"line {number + 1} of {index} is no image of {source}: {line}")
        found.append(name)
    if len(found) != len(names) or len(set(found)) != len(found):
        raise DataError(
            f"{index} names {len(set(found)):,} images in {len(found):,} lines, {source} has "
            f"{len(names):,}. It must name each once."
        )
    return found


_SUFFIXES = {"jpeg", "jpg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "avif"}
