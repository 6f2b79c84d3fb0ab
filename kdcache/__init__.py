"""Teacher-logit caches for any training loop: read targets, iterate batches, write caches.

Everything here is one of ours under its public name, imported when it is first used: reading
targets takes numpy and zarr alone, and torch comes with what needs it.

    >>> import kdcache
    >>> cache = kdcache.open("digits-cache.zarr")
    >>> cache.targets(view=3, rows=slice(0, 8)).dense(temperature=2.0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdcache import _rooms

if TYPE_CHECKING:
    from cache_tools.errors import CacheDamaged as CacheDamaged
    from cache_tools.errors import CacheIncomplete as CacheIncomplete
    from cache_tools.errors import CacheMismatch as CacheMismatch
    from cache_tools.errors import CacheNotFound as CacheNotFound
    from cache_tools.errors import DataError as DataError
    from cache_tools.errors import KdcacheError as KdcacheError
    from cache_tools.errors import NonFinite as NonFinite
    from cache_tools.errors import RecipeError as RecipeError
    from cache_tools.errors import TeacherError as TeacherError
    from cache_tools.errors import UsageError as UsageError
    from cache_tools.reader import CacheReader as Cache
    from cache_tools.reader import SparseTargets as SparseTargets
    from cache_tools.reader import open_reader as open
    from cache_tools.version import __version__ as __version__
    from train.data.batches import Batches as Batches
    from train.loss.losses import bkd as bkd_loss
    from train.loss.losses import dist as dist_loss
    from train.loss.losses import dkd as dkd_loss
    from train.loss.losses import kd as kd_loss
    from train.loss.targets import SoftTargets as SoftTargets

_ERRORS = (
    "CacheDamaged",
    "CacheIncomplete",
    "CacheMismatch",
    "CacheNotFound",
    "DataError",
    "KdcacheError",
    "NonFinite",
    "RecipeError",
    "TeacherError",
    "UsageError",
)
_SOURCES = {
    **{name: ("cache_tools.errors", name) for name in _ERRORS},
    "Batches": ("train.data.batches", "Batches"),
    "Cache": ("cache_tools.reader", "CacheReader"),
    "SoftTargets": ("train.loss.targets", "SoftTargets"),
    "SparseTargets": ("cache_tools.reader", "SparseTargets"),
    "bkd_loss": ("train.loss.losses", "bkd"),
    "dist_loss": ("train.loss.losses", "dist"),
    "dkd_loss": ("train.loss.losses", "dkd"),
    "kd_loss": ("train.loss.losses", "kd"),
    "open": ("cache_tools.reader", "open_reader"),
    "__version__": ("cache_tools.version", "__version__"),
}
"""Public name → module and name there."""
__all__ = [
    "Batches",
    "Cache",
    "CacheDamaged",
    "CacheIncomplete",
    "CacheMismatch",
    "CacheNotFound",
    "DataError",
    "KdcacheError",
    "NonFinite",
    "RecipeError",
    "SoftTargets",
    "SparseTargets",
    "TeacherError",
    "UsageError",
    "__version__",
    "bkd_loss",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "open",
]

_rooms.load()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _SOURCES:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    module, attribute = _SOURCES[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
