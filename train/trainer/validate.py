"""Pre-flight validation: recipes against cache and timm, and the set-up of this process."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from cache_tools.errors import CacheDamaged, CacheIncomplete, UsageError
from cache_tools.runtime import threads
from cache_tools.spec.targets import TargetSpec
from cache_tools.store import view_params
from cache_tools.targets import gradient_error
from train.data.inputs import Inputs
from train.distributed import ALONE, World
from train.recipe import TrainRecipe
from train.trainer import factory, plan

log = logging.getLogger("kdcache")
_NETWORK = ("student", "student_kwargs", "drop", "drop_path", "init", "grad_checkpointing")
_OPTIMIZER = ("opt", "opt_kwargs", "weight_decay", "layer_decay", "layer_decay_of")
_CREATES = (*_NETWORK, *_OPTIMIZER, "sched", "size", "eval_size")
"""Keys of a recipe that decide whether its network, optimizer and schedule can be created."""


def set_up(
    recipes: Sequence[TrainRecipe], inputs: Inputs, device: torch.device, world: World = ALONE
) -> None:
    """Set the threads of this process, and log what was chosen."""
    if not world.is_main:
        log.setLevel(logging.ERROR)
    if device.type == "cpu":
        own = inputs.store.spec.views.size
        sizes = [size for one in recipes for size in one.sizes(own)]
        count, why = threads.for_torch(max(sizes, default=own))
        torch.set_num_threads(count)
        log.info("%s", why)
    if inputs.validation is None:
        log.info("no labelled validation split of the teacher's classes: accuracy is not measured")


def check(recipes: Sequence[TrainRecipe], inputs: Inputs) -> None:
    """Refuse what cannot be trained from this cache.

    Raises:
        UsageError: Unknown names, a student that does not take the views, too few views, labels
            that are not there, what a mixture cannot do.
    """
    own = inputs.store.spec.views.size
    for recipe in recipes:
        plan.check(recipe, inputs.members.num_views)
        for size in recipe.sizes(own):
            view_params.at_size(inputs.store, size)
            if recipe.mode == "online" and size != own:
                raise UsageError(
                    f"mode=online runs the teacher on the student's views, and size={size} differs "
                    f"from the cache's {own} px. Leave size out, or train with mode=kd."
                )
    # without the keys that create nothing, so that each network of a sweep is created once
    created = [{name: getattr(recipe, name) for name in _CREATES} for recipe in recipes]
    for values, recipe in zip(created, recipes, strict=True):
        values["epochs"] = recipe.epochs if len(recipe.phases) > 1 else 1
    growing = any(recipe.follow for recipe in recipes)
    for recipe in dict.fromkeys(TrainRecipe(**values) for values in created):
        factory.check_head(recipe, inputs.store, growing)
        factory.check(recipe, inputs.num_classes, own)
    for recipe in recipes:
        if recipe.follow and recipe.view_order == "shuffle":
            log.warning(
                "view_order=shuffle takes views in another order than stage 1 makes them: epochs "
                "wait for late ones. With follow=true, view_order=cycle waits least."
            )
    _warn_of_targets(recipes, inputs)
    _check_members(inputs, recipes)
    labelled = any(
        recipe.mode == "labels"
        or recipe.loss == "dkd"
        or max(recipe.task_loss_weight, recipe.task_loss_weight_end) > 0
        for recipe in recipes
    )
    if labelled and not inputs.store.spec.dataset.labels:
        raise UsageError(
            f"{inputs.store.name} has no labels (its recipe has dataset.labels=ignore), so "
            "mode=labels, task_loss_weight and loss=dkd cannot be. Train with mode=kd."
        )


def _warn_of_targets(recipes: Sequence[TrainRecipe], inputs: Inputs) -> None:
    """Log what students require beyond what the targets contain, each kind once."""
    members, uses = inputs.members, []
    for recipe in recipes:
        if recipe.mode == "labels" or recipe.loss == "bkd":
            continue
        begin, keep, few = recipe.temperature, None, recipe.top_k
        if few:
            keep = TargetSpec(few, 0.0, few, temperatures=members.temperatures)
        end, name = recipe.temperature_end or begin, f"top_k={few}" if few else ""
        uses.append(gradient_error.Use(begin, end, recipe.tail, keep, name, recipe.loss))
    try:
        targets = members.sample()
    except (CacheDamaged, CacheIncomplete) as error:
        if any(recipe.follow for recipe in recipes):  # otherwise the check of the cache fails
            log.info("the classes kept are not compared with the temperatures yet: %s", error)
        return
    spec = replace(members.reference.spec.targets, temperatures=members.temperatures)
    stored = targets, spec, inputs.num_classes
    for line in gradient_error.shortfalls(*stored, uses, members.reference.name):
        log.warning(line)


def _check_members(inputs: Inputs, recipes: Iterable[TrainRecipe]) -> None:
    """Refuse what a mixture does not support, and log what is approximate in it."""
    members, recipes = inputs.members, list(recipes)
    if len(members.caches) == 1:
        return
    if any(item.mode == "online" for item in recipes):
        raise UsageError(
            "mode=online runs the teacher of one cache. Pass a single --cache, or mode=kd to learn "
            "from all of them."
        )
    for member in members.specs:
        log.info("%.4g of %s (%s…)", member.weight, member.name, member.cache[:19])
    distilled = [item for item in recipes if item.mode == "kd"]
    if any(item.loss == "dist" for item in distilled):
        log.info("dist takes the tail of a mixture as flat: its sum of squares is unknown")
