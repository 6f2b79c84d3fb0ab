"""The job of a run, as each of its processes gets it; plain values, which can be pickled."""

import logging
from dataclasses import dataclass

import torch

from pipeline.recipe import CacheRecipe, TeacherSource

log = logging.getLogger("kdcache")
CPU_BATCH = 32


@dataclass(frozen=True)
class JobSpec:
    """Inputs and output of a run."""

    recipe: CacheRecipe
    """Recipe of the cache."""
    data: str
    """Path or URL of the images."""
    sources: tuple[TeacherSource, ...]
    """Teachers."""
    out: str
    """Path or URL of the cache."""
    device: str | None = None
    """Device of the teacher; None: the first GPU, else the CPU."""
    random_weights: bool = False
    """Use of an untrained teacher, for speed trials."""
    force: bool = False
    """Go on with a teacher that agrees with the labels no more often than by chance."""

    @property
    def agrees(self) -> bool:
        """True if the teacher must agree with the labels more often than by chance."""
        return not (self.force or self.random_weights)


def batch_size(recipe: CacheRecipe, device: torch.device) -> int:
    """Choose the views per forward pass on a device."""
    if device.type == "cpu" and recipe.batch_size > CPU_BATCH:
        log.info(
            "batch size %d, not %d: larger batches are no faster on a CPU",
            CPU_BATCH,
            recipe.batch_size,
        )
        return CPU_BATCH
    return recipe.batch_size
