"""What a recipe will cost before anything is run: samples, parts, bytes, forwards."""

from typing import Any

from cache_tools import codec
from cache_tools.errors import UsageError
from pipeline.recipe import CacheRecipe

FILES_PER_PART = 6  # count, index_delta, code, tail, probes and the commit record


def plan(recipe: CacheRecipe, num_samples: int, num_classes: int) -> dict[str, Any]:
    """The size of the work.

    Args:
        recipe: What to do.
        num_samples: N; 0 takes the recipe's.
        num_classes: C; 0 takes the recipe's.

    Raises:
        UsageError: Neither says how many there are.
    """
    n = num_samples or recipe.dataset.num_samples
    c = num_classes or recipe.dataset.num_classes or 1000
    if not n:
        raise UsageError("how many samples are there? Pass --data DATA or dataset.num_samples=N.")
    k = min(recipe.targets.k_max, c)
    per_view = codec.expected_bytes(c, recipe.expected_kept or k, recipe.targets)
    blocks = -(-n // recipe.block_size)
    table = n * (8 + 8 + 4 + 4 + 4 + 8)
    return {
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
