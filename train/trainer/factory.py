"""timm's networks, optimizers and schedules, by the names in a recipe."""

import re
from functools import partial
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from cache_tools.errors import UsageError
from train.recipe import TrainRecipe
from train.trainer.init_weights import apply_init

SCHEDULES = ("cosine", "poly", "tanh", "step", "multistep", "wsd", "rsqrt")


def create_student(recipe: TrainRecipe, num_classes: int) -> nn.Module:
    """Create the student with random weights from torch's generator, or with those of `init`.

    Raises:
        UsageError: There is no such student, or no such weights.
    """
    if not timm.is_model(recipe.student.partition(".")[0]):
        names = timm.list_models(f"*{recipe.student[:8]}*")[:3] or timm.list_models("resnet?0")
        raise UsageError(
            f"timm {timm.__version__} has no network {recipe.student!r} for the student. Some it "
            f"has: {', '.join(names)}. See timm.list_models() for all."
        )
    rates = {"drop_rate": recipe.drop, "drop_path_rate": recipe.drop_path}
    options: dict[str, Any] = {name: rate for name, rate in rates.items() if rate}
    try:
        model: nn.Module = timm.create_model(
            recipe.student, pretrained=False, num_classes=num_classes, **options
        )
    except TypeError as error:
        raise UsageError(
            f"the student {recipe.student} takes no {' or '.join(options)} ({error}). Leave "
            "drop and drop_path at 0 for it."
        ) from None
    if recipe.init:
        apply_init(model, recipe.student, recipe.init)
    return model


def create_optimizer(recipe: TrainRecipe, student: nn.Module) -> Optimizer:
    """Timm's optimizer of this name; UsageError if unknown."""
    of_blocks = recipe.layer_decay and recipe.layer_decay_of == "blocks"
    groups = partial(_groups_by_block, decay=recipe.layer_decay, weight_decay=recipe.weight_decay)
    try:
        optimizer: Optimizer = create_optimizer_v2(
            student,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=None if of_blocks else recipe.layer_decay or None,
            param_group_fn=groups if of_blocks else None,
        )
    except (AssertionError, ValueError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        raise UsageError(
            f"opt={recipe.opt} cannot be used ({error}). Known are: {known}."
        ) from None
    return optimizer


def _groups_by_block(student: nn.Module, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which rates decay from block to block (`layer_decay_of`)."""
    depth: dict[nn.Parameter, int] = {}
    blocks: list[str] = []
    for name, parameter in student.named_parameters():
        block = re.match(r"(?:.*\.)?(?:blocks|layers|layer\d+)\.\d+(?=\.)", name)
        if block and block[0] not in blocks:
            blocks.append(block[0])
        depth[parameter] = max(len(blocks) - 1, 0)
    if not blocks:
        raise ValueError("layer_decay_of=blocks: this student has no blocks")
    free: set[str] = getattr(student, "no_weight_decay", set)()
    groups = []
    for group in param_groups_weight_decay(student, weight_decay, no_weight_decay_list=free):
        for level in range(len(blocks)):
            if chosen := [p for p in group["params"] if depth[p] == level]:
                scale = decay ** (len(blocks) - 1 - level)
                groups.append({**group, "params": chosen, "lr_scale": scale})
    return groups


def create_scheduler(recipe: TrainRecipe, optimizer: Optimizer, updates: int) -> Scheduler:
    """Timm's schedule of this name over `updates` updates an epoch; UsageError if unknown."""
    before = recipe.warmup_epochs if recipe.warmup_prefix else 0  # timm adds these to the epochs
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs - before,
            warmup_epochs=recipe.warmup_epochs,
            warmup_prefix=recipe.warmup_prefix,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=not recipe.sched_on_updates,
            updates_per_epoch=updates,
        )
    except (AssertionError, ValueError) as error:
        raise UsageError(
            f"sched={recipe.sched} cannot be used ({error}). Known are: {', '.join(SCHEDULES)}."
        ) from None
    if scheduler is None:
        raise UsageError("sched=none: name a schedule, such as cosine.")
    return scheduler


def check(recipe: TrainRecipe, num_classes: int, size: int) -> None:
    """Create everything once, so that impossible values are reported before any work is done.

    Raises:
        UsageError: An unknown name, or a student that does not take views of this size.
    """
    student = create_student(recipe, num_classes).eval()
    try:
        with torch.no_grad():
            student(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"the student {recipe.student} does not take the cache's views of {size} px "
            f"({str(error).partition(chr(10))[0]}). Choose another student, or a cache of views "
            "of its size."
        ) from None
    create_scheduler(recipe, create_optimizer(recipe, student), updates=1)
