"""Students of any library, timm's optimizers and schedules, by the names in a recipe."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    list_optimizers,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from cache_tools import config
from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.store.cache import Cache
from train.networks import NETWORK, check_savable
from train.recipe import TrainRecipe
from train.trainer.init_weights import apply_init

FREE_HEAD, HEAD_PER_BYTE = 2**29, 256
"""Bytes of a student's head that any cache may have, and more for each byte of its targets."""
_FEW_CLASSES = 2**14
SCHEDULES = ("cosine", "poly", "tanh", "step", "multistep", "wsd", "rsqrt")
_NO_STUDENT_KWARGS = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
        *("checkpoint_path", "cache_dir", "num_classes", "in_chans", "features_only", "device"),
        *("pruned", "scriptable", "exportable", "no_jit", "dtype", "model_name"),
        *("weights", "weights_backbone", "progress"),  # of torchvision
    )
)
"""Arguments of networks that are decided elsewhere, or that make no student."""
_OF_FACTORY = {
    "filter_bias_and_bn": True,
    "fallback_list": None,
    "fallback_no_weight_decay": False,
    "layer_decay_min_scale": 0.0,
    "layer_decay_no_opt_scale": None,
}
"""Arguments of timm's `create_optimizer_v2` that are no optimizer's, with their defaults."""


def create_student(recipe: TrainRecipe, num_classes: int) -> nn.Module:
    """Create the student with random weights from torch's generator, or with those of `init`.

    Raises:
        UsageError: There is no such student, or no such weights.
    """
    options = student_options(recipe)
    model: Any = NETWORK.load()(recipe.student, num_classes=num_classes, options=options)
    if recipe.init:
        apply_init(model, recipe.student, recipe.init, recipe.student_kwargs)
    if recipe.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise UsageError(
                f"the student {recipe.student} has no grad_checkpointing. Leave it off, and lower "
                "batch_size and raise grad_accum_steps if memory does not suffice."
            ) from None
    return model


def student_options(recipe: TrainRecipe) -> dict[str, Any]:
    """Arguments of the network: student_kwargs, drop and drop_path.

    Raises:
        UsageError: One that is decided elsewhere, or twice.
    """
    options = dict(recipe.student_kwargs)
    if wrong := sorted(_NO_STUDENT_KWARGS & options.keys()):
        raise UsageError(
            f"student_kwargs.{wrong[0]} cannot be set: classes are those of the cache, pictures "
            "are RGB, weights are named by init, and a run makes a whole network."
        )
    for key, name in (("drop", "drop_rate"), ("drop_path", "drop_path_rate")):
        if rate := getattr(recipe, key):
            if name in options:
                raise UsageError(f"{key} and student_kwargs.{name} are one: set one of them.")
            options[name] = rate
    return options


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


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
            **_opt_kwargs(recipe),
        )
    except UsageError:
        raise
    except (AssertionError, TypeError, ValueError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        check = _listed(recipe.opt_kwargs)
        raise UsageError(
            f"opt={recipe.opt} cannot be used ({error}). "
            + (f"Check opt_kwargs: {check}." if check else f"Known are: {known}.")
        ) from None
    return optimizer


def _opt_kwargs(recipe: TrainRecipe) -> dict[str, Any]:
    """Check the names and types of opt_kwargs: timm leaves out what an optimizer does not have."""
    if not recipe.opt_kwargs:
        return {}
    made = get_optimizer_class(recipe.opt.lower().rpartition("_")[2], bind_defaults=False)
    known = {p.name: p.default for p in inspect.signature(made).parameters.values()} | _OF_FACTORY
    for name in ("params", "lr", "weight_decay"):
        known.pop(name, None)
    if not recipe.layer_decay or recipe.layer_decay_of == "blocks":
        known = {name: value for name, value in known.items() if "layer_decay" not in name}
    for name, value in recipe.opt_kwargs.items():
        if name in ("lr", "weight_decay"):
            raise UsageError(f"opt_kwargs.{name}: it is a key of the recipe itself, {name}.")
        if name not in known:
            raise UsageError(f"opt={recipe.opt} takes no {name!r}. {config.nearest(name, known)}")
        if wanted := _differing_type(known[name], value):
            raise UsageError(f"opt_kwargs.{name} of opt={recipe.opt} is {wanted}, found {value!r}.")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.opt_kwargs.items()}


def _differing_type(default: Any, value: Any) -> str:
    """Name the type of an argument with this default, if `value` is of another; else ""."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return "" if type(value) in (int, float) else "a number"
    if isinstance(default, tuple):
        fits = isinstance(value, Iterable) and all(type(v) in (int, float) for v in value)
        return "" if fits and len(value) == len(default) else f"a list of {len(default)} numbers"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "a word"
    return "" if default is None else "of a type that no recipe has"


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


def check_head(recipe: TrainRecipe, store: Cache, growing: bool = False) -> None:
    """Compare the size of a student's head with the bytes of the targets, before it takes memory.

    Those of a `growing` cache, which is still being made, are estimated from the parts it has.

    Raises:
        CacheDamaged: The cache has more classes than its targets can be of.
        CacheIncomplete: It is not growing, and lacks a part.
    """
    classes = store.spec.teacher.num_classes
    if classes <= _FEW_CLASSES:
        return
    with torch.device("meta"):
        small, whole = (create_student(replace(recipe, init=""), c) for c in (2, classes))
    weights = sum(p.numel() for p in whole.parameters()) - sum(
        p.numel() for p in small.parameters()
    )
    if 4 * weights <= FREE_HEAD:
        return
    parts, stored = list(store.parts()), store.target_bytes()
    made = set(store.recorded(parts))
    missing = next((part for part in parts if part not in made), None)
    if missing is not None and not growing and (fault := store.check_part(missing)):
        raise fault
    if made and 4 * weights > HEAD_PER_BYTE * stored * len(parts) / len(made):
        raise CacheDamaged(
            f"{store.name} has {classes:,} classes, for which the head of {recipe.student} would "
            f"take {4 * weights:,} bytes, and {stored:,} bytes of targets: they cannot be of so "
            "many classes. Fetch the cache again, or choose a student with fewer features."
        )


def check(recipe: TrainRecipe, num_classes: int, own: int) -> None:
    """Create everything once, so that impossible values are reported before any work is done.

    `own` is the size of the cache's views in pixels.

    Raises:
        UsageError: An unknown name, or a student that does not take views of its size.
    """
    student = create_student(recipe, num_classes).eval()
    for size in dict.fromkeys([recipe.measured_size(own), *recipe.sizes(own)]):
        try:
            with torch.no_grad():
                logits = student(torch.zeros(2, 3, size, size))
        except Exception as error:  # of whatever code the student is
            if is_out_of_memory(error):
                raise
            what = f"the cache's views of {size} px" if size == own else f"images of {size} px"
            raise UsageError(
                f"the student {recipe.student} does not take {what} "
                f"({str(error).partition(chr(10))[0]}). Choose another student, or the size that "
                "it takes with the keys size and eval_size."
            ) from None
    found = getattr(logits, "shape", type(logits).__name__)
    if found != (2, num_classes):
        raise UsageError(
            f"the student {recipe.student} returns {found} for 2 views, expected logits "
            f"[2, {num_classes}]: the cache has {num_classes} classes. Choose another student, or "
            "let its function take num_classes."
        )
    check_savable(student, recipe.student)
    optimizer = create_optimizer(recipe, student)
    create_scheduler(recipe, optimizer, updates=1)
    if recipe.opt_kwargs:  # some are used in a step only
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except (
            AssertionError,
            ArithmeticError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as e:
            raise UsageError(
                f"opt={recipe.opt} makes no step with {_listed(recipe.opt_kwargs)} ({e})."
            ) from None
