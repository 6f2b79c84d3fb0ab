"""Cost of a recipe before anything is run: samples, parts, bytes, forward passes."""

from collections.abc import Mapping
from typing import Any

from cache_tools.errors import UsageError
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec
from pipeline import recipe as recipes
from pipeline.recipe import CacheRecipe

FILES_PER_PART = 6  # count, index_delta, code, tail, probes and the commit record


def plan(
    recipe: CacheRecipe,
    num_samples: int,
    num_classes: int,
    rate: float = 0.0,
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute the size of a cache and the work of stage 1.

    Args:
        recipe: Recipe of the cache.
        num_samples: N; 0 takes the recipe's.
        num_classes: C; 0 takes the recipe's.
        rate: Views per second of the teacher, to compute the hours; 0 = as measured.
        measured: Result of `estimate.measure`.

    Raises:
        UsageError: The number of samples is unknown.
    """
    n = num_samples or recipe.dataset.num_samples
    c = num_classes or recipe.dataset.num_classes or 1000
    if not n:
        raise UsageError(
            "the number of samples is unknown. Pass --data DATA or dataset.num_samples=N."
        )
    found = dict(measured or {})
    kept = found.get("kept_classes") or _kept(recipe, c)
    per_view = codec.expected_bytes(c, kept, recipe.targets)
    blocks = -(-n // recipe.block_size)
    table = n * (8 + 8 + 4 + 4 + 4 + 8)
    facts: dict[str, Any] = {
        "samples": n,
        "views_per_sample": recipe.num_views,
        "blocks": blocks,
        "parts": blocks * recipe.num_views,
        "files": FILES_PER_PART * blocks * recipe.num_views,
        "forwards": n * recipe.num_views,
        "bytes_per_view": round(per_view, 1),
        "bytes": round(per_view * n * recipe.num_views) + table,
        "decodes": n * -(-recipe.num_views // recipe.views_per_decode),
    }
    rate = rate or found.get("views_per_s", 0.0)
    hours = facts["forwards"] / rate / 3600 if rate else 0.0
    return facts | found | ({"hours": round(hours, 1 if hours >= 1 else 4)} if rate else {})


def expected(name: str) -> dict[str, Any]:
    """Facts about the cache of a recipe for planning stage 2 (`train.trainer.plan.Expected`).

    Raises:
        UsageError: There is no such recipe, or it has no number of samples.
    """
    recipe = recipes.load(name)
    if not recipe.dataset.num_samples:
        raise UsageError(f"the recipe {name} has no number of samples. Pass --cache CACHE.")
    return {
        "samples": recipe.dataset.num_samples,
        "num_views": recipe.num_views,
        "kept": _kept(recipe, recipe.dataset.num_classes or 1000),
        "views": recipe.views,
        "targets": recipe.targets,
    }


def targets(name: str) -> TargetSpec:
    """Targets of the recipe `name` of stage 1, a name or a file.

    Raises:
        UsageError, RecipeError: There is no such recipe, or it is invalid.
    """
    return recipes.load(name).targets


def _kept(recipe: CacheRecipe, num_classes: int) -> float:
    """Classes kept per view: the expected number, else the maximum."""
    return recipe.expected_kept or min(recipe.targets.k_max, num_classes)
