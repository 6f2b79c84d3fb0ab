"""Short runs of the digits, alone or in cohorts, and the weights that they end with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cache_tools.errors import NonFinite
from train import run_dir
from train.data.inputs import Inputs
from train.recipe import TrainRecipe
from train.trainer import loop

FAST = ["epochs=2", "views_per_epoch=2", "batch_size=40"]


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def train_together(
    runs: Sequence[tuple[Path, TrainRecipe]], inputs: Inputs, device: str = "cpu"
) -> list[dict[str, Any] | NonFinite]:
    """Train, or go on with, the runs that are not finished, in one cohort."""
    for out, recipe in runs:
        run_dir.init_run(out, recipe, inputs, fresh=False)
    todo = [run for run in runs if not (run[0] / "result.json").exists()]
    return loop.train_cohort(todo, inputs, torch.device(device))
