"""Source of a contact sheet: a cache with its targets, or a recipe before there is one."""

from collections.abc import Iterable
from pathlib import Path

from cache_tools.data import scan
from cache_tools.data.open import open_images
from cache_tools.errors import UsageError
from cache_tools.report import sheet_source
from cache_tools.report.contact_sheet import ViewSource
from cache_tools.report.sheet_source import SheetSource
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes

WINDOW = 1024


def open_source(name: str, data: str, overrides: Iterable[str], size: int = 0) -> SheetSource:
    """Open a cache, or a recipe by its name or path.

    Views have `size` pixels a side; 0: as the teacher's input.

    Raises:
        CacheNotFound: It is a link that leads nowhere.
        UsageError: No data set was given and none is recorded beside the cache.
    """
    path = Path(name)
    dangling = path.is_symlink() and not path.exists()
    if dangling or any((path / inner).exists() for inner in ("zarr.json", "samples")):
        return sheet_source.of_cache(Cache.open(path), data, size)
    recipe = recipes.load(name, overrides)
    if not data:
        raise UsageError("no images are given. Pass --data with a folder of shards or images.")
    images = open_images(data, recipe.dataset.split)
    _, _, images = scan.in_table_order(images, None)
    spec = recipe.views.at(size) if size else recipe.views.for_teacher()
    views = ViewSource(images, spec, WINDOW)
    return SheetSource(views, recipe.num_views, None)
