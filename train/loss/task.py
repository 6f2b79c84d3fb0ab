"""`CachedDistillationTask`: timm's training task with soft targets from a cache.

Inherits EMA, evaluation model and state handling from timm; only the forward pass is ours.

Shapes: B views.
"""

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.loss import losses
from train.loss.targets import SoftTargets
from train.recipe import TrainRecipe


class CachedDistillationTask(TrainingTask):
    """A student and its loss on cached targets or labels."""

    def __init__(self, student: nn.Module, recipe: TrainRecipe, device: torch.device) -> None:
        super().__init__(device=device, verbose=False)
        self.trainable_module = student
        self.recipe = recipe
        self.progress = 0.0
        """Finished share of the run, 0..1: weights and temperature may change with it."""

    def prepare_distributed(
        self, device_ids: list[int] | None = None, **options: Any
    ) -> "CachedDistillationTask":
        """Average gradients over all processes from now on."""
        student = DistributedDataParallel(self.trainable_module, device_ids, **options)
        self.trainable_module = student
        return self

    def forward(  # type: ignore[override]
        self, input: Tensor, target: SoftTargets
    ) -> dict[str, Tensor]:
        """Loss of one batch: keys loss, output and the terms of the loss."""
        recipe = self.recipe
        output = self.trainable_module(input)
        if recipe.mode == "labels":
            task_loss = self._task_loss(output, target)
            return {"loss": task_loss, "output": output, "task_loss": task_loss}
        temperature = recipe.now("temperature", self.progress)
        kd_loss = distill_loss(recipe, output, target, temperature)
        weight = recipe.now("distill_loss_weight", self.progress)
        result = {"loss": weight * kd_loss, "output": output, "kd_loss": kd_loss}
        if weight := recipe.now("task_loss_weight", self.progress):
            result["task_loss"] = self._task_loss(output, target)
            result["loss"] = result["loss"] + weight * result["task_loss"]
        return result

    def _task_loss(self, output: Tensor, target: SoftTargets) -> Tensor:
        recipe, labels = self.recipe, (target.label, target.partner_label, target.lam)
        if recipe.task_loss == "ce":
            return losses.cross_entropy(output, *labels, recipe.smoothing)
        threshold = recipe.bce_target_thresh
        return losses.binary_cross_entropy(output, *labels, recipe.smoothing, threshold)


def distill_loss(
    recipe: TrainRecipe, logits_BC: Tensor, targets: SoftTargets, temperature: float
) -> Tensor:
    """Compute the recipe's loss on soft targets, a scalar: the mean over B views."""
    if recipe.loss == "bkd":
        return losses.bkd(logits_BC, targets)
    if recipe.loss == "dist":
        weights = recipe.dist_beta, recipe.dist_gamma
        return losses.dist(logits_BC, targets, temperature, *weights)
    if recipe.loss == "dkd":
        weights = recipe.dkd_alpha, recipe.dkd_beta
        return losses.dkd(logits_BC, targets, temperature, *weights)
    return losses.kd(logits_BC, targets, temperature, recipe.tail)
