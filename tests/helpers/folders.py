"""Folders of images written from an opened data set."""

from pathlib import Path

from cache_tools.data.images import ImageDataset


def write(
    images: ImageDataset, folder: Path, numbers: list[int], renamed: set[int] = frozenset()
) -> str:  # type: ignore[assignment]
    """An ImageFolder of some images, written last to first; some under other names."""
    for label in range(10):
        (folder / f"{label}").mkdir(parents=True)
    for number in reversed(numbers):
        name = f"copy-{number}" if number in renamed else images.names[number].rpartition("/")[2]
        path = folder / f"{images.label_N[number]}" / f"{name}.png"
        path.write_bytes(images.read(number))
    return str(folder)
