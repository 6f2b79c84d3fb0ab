"""What a contact sheet is drawn from: a cache with its targets, or a recipe before there is one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache_tools import codec, samples, shards, verify
from cache_tools.commits import Part
from cache_tools.errors import UsageError
from cache_tools.sheet import Says, Source
from cache_tools.store import Store
from pipeline import recipe as recipes

WINDOW = 1024
Names = Callable[[int], str]


@dataclass(frozen=True)
class Shown:
    """A source of views and what is known of them."""

    source: Source
    num_views: int
    says: Says | None


def open_source(name: str, data: str, overrides: Iterable[str]) -> Shown:
    """Open a cache, or a recipe by its name or path.

    Raises:
        UsageError: No data set was given and none is noted beside the cache.
    """
    if (Path(name) / "zarr.json").is_file():
        return _of_cache(Store.open(Path(name)), data)
    if not data:
        raise UsageError("whose views? Pass --data with a folder of shards or images.")
    recipe = recipes.load(name, overrides)
    images = shards.open_images(data, recipe.dataset.split)
    _, keys, images = samples.in_table_order(images, None)
    ids = np.array([samples.sample_id(key) for key in keys], dtype=np.uint64)
    source = Source(recipe.views.for_teacher(), WINDOW, tuple(keys), ids, images)
    return Shown(source, recipe.num_views, None)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, spread evenly."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def _of_cache(store: Store, data: str) -> Shown:
    verify.check_replayable(store)
    source_path = data or store.source
    if not source_path:
        raise UsageError(f"where are the images of {store.name}? Pass --data with their folder.")
    opened = shards.open_images(source_path, "train")
    images = samples.match(store.table, store.spec.dataset, opened)
    seen, table = store.spec.views.for_teacher(), store.table
    source = Source(seen, store.spec.window, table.keys, table.id_N, images)
    names = _class_names(images.class_names, store.spec.teacher.num_classes)

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


def _class_names(named: tuple[str, ...], num_classes: int) -> Names:
    """Names of classes: the data set's own, ImageNet's, or numbers."""
    if len(named) == num_classes:
        return lambda index: named[index]
    if num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return lambda index: str(info.index_to_description(index)).partition(",")[0]
    return lambda index: f"class {index}"
