"""timm's networks, optimizers and schedules, by the names in a recipe."""

from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
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
    try:
        optimizer: Optimizer = create_optimizer_v2(
            student,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay or None,
        )
    except (AssertionError, ValueError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        raise UsageError(
            f"opt={recipe.opt} cannot be used ({error}). Known are: {known}."
        ) from None
    return optimizer


def create_scheduler(recipe: TrainRecipe, optimizer: Optimizer, steps: int) -> Scheduler:
    """Timm's schedule of this name over `steps` updates an epoch; UsageError if unknown."""
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps,
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
    create_scheduler(recipe, create_optimizer(recipe, student), steps=1)
