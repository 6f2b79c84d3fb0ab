"""Plan of a run of stage 2: steps, images, views, memory and hours, before anything is run.

The cache is the one at hand or, before there is one, the one its recipe of stage 1 would make.

Shapes: N samples, V views of the cache, m views of a sample per epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cache_tools.errors import UsageError
from cache_tools.runtime.plugins import Plugin
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.views import draw
from train.recipe import TrainRecipe

EXPECTED: Plugin[Callable[[str], dict[str, Any]]] = Plugin(
    "kdcache.plans", "cache", "read a recipe of stage 1"
)
_ENTRY = 2 + 1
"""Bytes of a kept class in RAM: the difference to the class before it, and its code."""


@dataclass(frozen=True)
class Expected:
    """Facts of a cache that enter a plan."""

    samples: int
    """N."""
    num_views: int
    """V."""
    kept: float
    """Classes kept per view, on average."""
    views: ViewSpec
    """The augmentation."""
    targets: TargetSpec
    """Storage of the targets."""


def of_store(store: Cache) -> Expected:
    """Read the facts of an existing cache."""
    spec = store.spec
    kept = info.info(store)["kept_classes_mean"] or float(spec.targets.k_max)
    return Expected(spec.dataset.num_samples, store.num_views, kept, spec.views, spec.targets)


def of_recipe(name: str) -> Expected:
    """Compute the facts of the cache that the recipe `name` of stage 1 would make.

    Raises:
        UsageError: No stage 1 is installed, or it has no such recipe.
    """
    if name.endswith(".toml"):
        raise UsageError(f"{name} does not name its cache. Pass --cache CACHE.")
    return Expected(**EXPECTED.load()(name))


def check(recipe: TrainRecipe, num_views: int) -> None:
    """Refuse a cache with fewer views than the schedule requires.

    Raises:
        UsageError: The cache has too few views; the message has the command that adds some.
    """
    if num_views < recipe.num_views:
        raise UsageError(
            f"num_views={recipe.num_views:,} cannot be shown: the cache has {num_views:,} views of "
            "a sample. The command that made the cache adds some, with its num_views; num_views=0 "
            "shows all there are."
        )
    num_views = recipe.num_views or num_views
    if num_views < recipe.min_views:
        raise UsageError(
            f"the cache has {num_views:,} views of a sample, this schedule of {recipe.epochs:,} "
            f"epochs requires at least {recipe.min_views:,} (its key min_views). The command that "
            f"made the cache adds what is missing, with num_views={recipe.min_views}; "
            f"min_views={num_views} trains on what there is."
        )


def plan(recipe: TrainRecipe, cache: Expected, rate: float = 0.0) -> dict[str, Any]:
    """Compute the size of a run, and its hours at `rate` images per second (0 = unknown)."""
    shown = cache.samples // recipe.aug_repeats
    of_sample = recipe.views_per_epoch * recipe.aug_repeats
    ends = [*(phase.first for phase in recipe.phases[1:]), recipe.epochs]
    phases = [
        (end - phase.first, shown * of_sample // phase.batch_size, phase)
        for phase, end in zip(recipe.phases, ends, strict=True)
    ]
    images = sum(epochs * steps * phase.batch_size for epochs, steps, phase in phases)
    accum = recipe.grad_accum_steps
    facts: dict[str, Any] = {
        "samples": cache.samples,
        "views_in_cache": cache.num_views,
        "min_views": recipe.min_views,
        "views_shown": recipe.views_shown,
        "times_each_view": round(recipe.views_shown / (recipe.num_views or cache.num_views), 2),
        "epochs": recipe.epochs,
        "size": recipe.train_size(cache.views.size),
        "eval_size": recipe.measured_size(cache.views.size),
        "steps_per_epoch": phases[-1][1],
        "updates": sum(epochs * -(-steps // accum) for epochs, steps, _ in phases),
        "views_per_update": phases[-1][2].batch_size * accum,
        "images": images,
        "resident_bytes": round(_resident(cache, of_sample)),
    }
    if len(phases) > 1:  # what is of one phase above is of the last
        facts["phases"] = ", ".join(
            f"{epochs} × {phase.size or cache.views.size} px in batches of {phase.batch_size}"
            for epochs, _, phase in phases
        )
    return facts | ({"hours": round(images / rate / 3600, 1)} if rate else {})


def _resident(cache: Expected, of_sample: int) -> float:
    """Bytes of RAM for targets and parameters of the views of an epoch and of the next one."""
    targets = cache.targets
    target = 10 + _ENTRY * cache.kept + len(targets.temperatures)
    target += (1 + cache.views.mixes) * targets.true_class + targets.tail_square
    one = np.ones(1, dtype=np.uint64), np.full(1, 500, np.int32), np.full(1, 500, np.int32)
    drawn = draw.draw(cache.views, *one, 0)
    params = sum(getattr(drawn, field.name).nbytes for field in fields(drawn))
    return cache.samples * min(2 * of_sample, cache.num_views) * (target + params)
