"""Teacher-logit caches for any training loop: read targets, iterate batches, write caches.

Everything here is one of ours under its public name, imported when it is first used: reading
targets takes numpy and zarr alone, and torch comes with what needs it.

    >>> import kdcache
    >>> cache = kdcache.open("digits-cache.zarr")
    >>> cache.targets(view=3, rows=slice(0, 8)).dense(temperature=2.0).shape
    (8, 10)

The examples in the docstrings run in a folder with the digits, their teacher and their cache.
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
    OutOfMemory,
    RecipeError,
    RunNotFound,
    TeacherError,
    UsageError,
)
from cache_tools.version import __version__

if TYPE_CHECKING:
    from cache_tools.reader import CacheReader as Cache
    from cache_tools.reader import SparseTargets as SparseTargets
    from cache_tools.reader import open_reader as open
    from cache_tools.verify.api import VerifyResult as VerifyResult
    from cache_tools.verify.api import verify as verify
    from pipeline.api import make_cache as make_cache
    from pipeline.recipe import CacheRecipe as CacheRecipe
    from pipeline.recipe import TeacherSource as TeacherSource
    from pipeline.run import CacheResult as CacheResult
    from pipeline.teacher.info import TeacherInfo as TeacherInfo
    from pipeline.writer import CacheWriter as CacheWriter
    from pipeline.writer import WriterBatch as WriterBatch
    from pipeline.writer import create as create
    from train.api import EvalResult as EvalResult
    from train.api import Result as TrainResult
    from train.api import evaluate as evaluate
    from train.api import fit as train
    from train.data.batches import Batches as Batches
    from train.loss.losses import bkd as bkd_loss
    from train.loss.losses import dist as dist_loss
    from train.loss.losses import dkd as dkd_loss
    from train.loss.losses import kd as kd_loss
    from train.loss.targets import SoftTargets as SoftTargets
    from train.recipe import TrainRecipe as TrainRecipe

_LAZY = {
    "Batches": "train.data.batches:Batches",
    "Cache": "cache_tools.reader:CacheReader",
    "CacheRecipe": "pipeline.recipe:CacheRecipe",
    "CacheResult": "pipeline.run:CacheResult",
    "CacheWriter": "pipeline.writer:CacheWriter",
    "EvalResult": "train.api:EvalResult",
    "SoftTargets": "train.loss.targets:SoftTargets",
    "SparseTargets": "cache_tools.reader:SparseTargets",
    "TeacherInfo": "pipeline.teacher.info:TeacherInfo",
    "TeacherSource": "pipeline.recipe:TeacherSource",
    "TrainRecipe": "train.recipe:TrainRecipe",
    "TrainResult": "train.api:Result",
    "VerifyResult": "cache_tools.verify.api:VerifyResult",
    "WriterBatch": "pipeline.writer:WriterBatch",
    "bkd_loss": "train.loss.losses:bkd",
    "create": "pipeline.writer:create",
    "dist_loss": "train.loss.losses:dist",
    "dkd_loss": "train.loss.losses:dkd",
    "evaluate": "train.api:evaluate",
    "kd_loss": "train.loss.losses:kd",
    "make_cache": "pipeline.api:make_cache",
    "open": "cache_tools.reader:open_reader",
    "train": "train.api:fit",
    "verify": "cache_tools.verify.api:verify",
}
"""Public name → module and name there, imported when it is first used."""
__all__ = [
    "Batches",
    "Cache",
    "CacheDamaged",
    "CacheIncomplete",
    "CacheMismatch",
    "CacheNotFound",
    "CacheRecipe",
    "CacheResult",
    "CacheWriter",
    "DataError",
    "EvalResult",
    "KdcacheError",
    "NonFinite",
    "OutOfMemory",
    "RecipeError",
    "RunNotFound",
    "SoftTargets",
    "SparseTargets",
    "TeacherError",
    "TeacherInfo",
    "TeacherSource",
    "TrainRecipe",
    "TrainResult",
    "UsageError",
    "VerifyResult",
    "WriterBatch",
    "__version__",
    "bkd_loss",
    "create",
    "dist_loss",
    "dkd_loss",
    "evaluate",
    "kd_loss",
    "make_cache",
    "open",
    "train",
    "verify",
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
