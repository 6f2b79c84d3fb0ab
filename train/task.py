"""`CachedDistillationTask`: timm's training task with the teacher's words from a cache.

Inherits EMA, evaluation model and state handling from timm; only the forward pass is ours.
"""

from dataclasses import dataclass

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from train.losses import SoftTargets, mixed_cross_entropy, sparse_kl
from train.recipe import TrainRecipe


@dataclass(frozen=True)
class Supervision:
    """What a batch is to be learned from, on the student's device."""

    soft: SoftTargets
    label_B: Tensor
    """int64 labels; NO_LABEL (-1) when the cache has none."""
    partner_label_B: Tensor
    """Labels of the mixup partners."""
    lam_B: Tensor
    """fp32 share of the view's own sample, 0..1."""


class CachedDistillationTask(TrainingTask):
    """A student and its loss on cached targets or labels."""

    def __init__(self, student: nn.Module, recipe: TrainRecipe, device: torch.device) -> None:
        super().__init__(device=device, verbose=False)
        self.trainable_module = student
        self.recipe = recipe

    def forward(  # type: ignore[override]
        self, input: Tensor, target: Supervision
    ) -> dict[str, Tensor]:
        """Loss of one batch: keys loss, output and the terms of the loss."""
        recipe = self.recipe
        output = self.trainable_module(input)
        labels = (target.label_B, target.partner_label_B, target.lam_B)
        if recipe.mode == "labels":
            task_loss = mixed_cross_entropy(output, *labels, recipe.smoothing)
            return {"loss": task_loss, "output": output, "task_loss": task_loss}
        kd_loss = sparse_kl(output, target.soft, recipe.temperature)
        result = {
            "loss": recipe.distill_loss_weight * kd_loss,
            "output": output,
            "kd_loss": kd_loss,
        }
        if recipe.task_loss_weight:
            result["task_loss"] = mixed_cross_entropy(output, *labels, recipe.smoothing)
            result["loss"] = result["loss"] + recipe.task_loss_weight * result["task_loss"]
        return result
