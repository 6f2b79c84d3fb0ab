"""What a contact sheet of a cache is drawn from: its views, and what the teacher said of them.

Shapes: N samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cache_tools.data import match
from cache_tools.data.open import open_images
from cache_tools.errors import UsageError
from cache_tools.report.contact_sheet import Says, Source
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.verify import verify

Names = Callable[[int], str]
"""Class → its name."""


@dataclass(frozen=True)
class Shown:
    """A source of views and what is known of them."""

    source: Source
    num_views: int
    says: Says | None


def of_cache(store: Cache, data: str, imagenet: Callable[[], Names]) -> Shown:
    """A cache with its images.

    Args:
        store: The cache.
        data: Where its images are; "": where this machine noted them.
        imagenet: Names of ImageNet's classes, asked for where the images name none.

    Raises:
        UsageError, CacheMismatch: There are no images, or those of another cache.
    """
    verify.check_replayable(store)
    source_path = data or store.source
    if not source_path:
        raise UsageError(f"where are the images of {store.name}? Pass --data with their folder.")
    opened = open_images(source_path, "train")
    images = match.match(store.table, store.spec.dataset, opened)
    source = Source(images, store.spec.views.for_teacher(), store.spec.window, store)
    names = class_names(images.class_names, store.spec.teacher.num_classes, imagenet)

    def says(row: int, view: int) -> list[tuple[str, float]]:
        part = Part(view, row // store.spec.block_size)
        if not store.present(part):
            return []
        at = row % store.spec.block_size
        target = codec.decode(store.read(part)[0], store.spec.targets, np.array([at]))
        p, index = target.probability_BK[0], target.index_BK[0]
        best = np.argsort(-p)[:3]
        return [(names(int(index[i])), float(p[i])) for i in best if p[i] > 0]

    return Shown(source, store.num_views, says)


def class_names(named: tuple[str, ...], num_classes: int, imagenet: Callable[[], Names]) -> Names:
    """Names of classes: the data set's own, ImageNet's, or numbers."""
    if len(named) == num_classes:
        return lambda index: named[index]
    return imagenet() if num_classes == 1000 else lambda index: f"class {index}"


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, spread evenly."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
