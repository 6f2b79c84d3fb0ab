"""Teacher-logit caches for any training loop: read targets, iterate batches, write caches.

Everything here is one of ours under its public name, imported when it is first used: reading
targets takes numpy and zarr alone, and torch comes with what needs it.

    >>> import kdcache
    >>> cache = kdcache.open("digits-cache.zarr")
    >>> cache.targets(view=3, rows=slice(0, 8)).dense(temperature=2.0).shape
    (8, 10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdcache import _rooms as _rooms  # loads our packages: before any of them is imported

# isort: split
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    DataError,
    KdcacheError,
    NonFinite,
    RecipeError,
    TeacherError,
    UsageError,
)
from cache_tools.version import __version__

if TYPE_CHECKING:
    from cache_tools.reader import CacheReader as Cache
    from cache_tools.reader import SparseTargets as SparseTargets
    from cache_tools.reader import open_reader as open
    from pipeline.run import CacheResult as CacheResult
    from pipeline.writer import CacheWriter as CacheWriter
    from pipeline.writer import TeacherInfo as TeacherInfo
    from pipeline.writer import WriterBatch as WriterBatch
    from pipeline.writer import create as create
    from train.data.batches import Batches as Batches
    from train.loss.losses import bkd as bkd_loss
    from train.loss.losses import dist as dist_loss
    from train.loss.losses import dkd as dkd_loss
    from train.loss.losses import kd as kd_loss
    from train.loss.targets import SoftTargets as SoftTargets

_LAZY = {
    "Batches": "train.data.batches:Batches",
    "Cache": "cache_tools.reader:CacheReader",
    "CacheResult": "pipeline.run:CacheResult",
    "CacheWriter": "pipeline.writer:CacheWriter",
    "SoftTargets": "train.loss.targets:SoftTargets",
    "SparseTargets": "cache_tools.reader:SparseTargets",
    "TeacherInfo": "pipeline.writer:TeacherInfo",
    "WriterBatch": "pipeline.writer:WriterBatch",
    "bkd_loss": "train.loss.losses:bkd",
    "create": "pipeline.writer:create",
    "dist_loss": "train.loss.losses:dist",
    "dkd_loss": "train.loss.losses:dkd",
    "kd_loss": "train.loss.losses:kd",
    "open": "cache_tools.reader:open_reader",
}
"""Public name → module and name there, imported when it is first used."""
__all__ = [
    "Batches",
    "Cache",
    "CacheDamaged",
    "CacheIncomplete",
    "CacheMismatch",
    "CacheNotFound",
    "CacheResult",
    "CacheWriter",
    "DataError",
    "KdcacheError",
    "NonFinite",
    "RecipeError",
    "SoftTargets",
    "SparseTargets",
    "TeacherError",
    "TeacherInfo",
    "UsageError",
    "WriterBatch",
    "__version__",
    "bkd_loss",
    "create",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "open",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
