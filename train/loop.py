"""The training loop, to be read from top to bottom.

One run of one student: replay the views, learn from the stored targets (or from the labels),
measure, save. Everything that is not distillation is timm's: network, optimizer, schedule, moving
average, format of the saved student.
"""

import json
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import convert_sync_batchnorm
from timm.models import save_for_hf
from timm.utils import dispatch_clip_grad, unwrap_model

from cache_tools import files, progress
from cache_tools.errors import NonFinite
from train import checkpoint, run
from train.evaluate import evaluate
from train.factory import create_optimizer, create_scheduler, create_student
from train.input import Ask, Input, said_now
from train.recipe import TrainRecipe
from train.replay import Replay
from train.run import Inputs
from train.schedule import Schedule
from train.stop import StopRequest
from train.task import CachedDistillationTask
from train.world import ALONE, World

log = logging.getLogger("kdcache")
LOOK = 32
"""Steps after which the losses are looked at."""


def train(  # noqa: PLR0912 - the one long function
    recipe: TrainRecipe,
    inputs: Inputs,
    out: Path,
    device: torch.device,
    ask: Ask | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train one student.

    Args:
        recipe: What to do.
        inputs: Cache and data, checked by `replay.check`.
        out: Folder of the run, prepared by `run.begin`.
        device: Where to train.
        ask: The teacher in the loop, for mode online.
        world: The processes that train together.

    Returns:
        The content of result.json.

    Raises:
        NonFinite: The loss became NaN or Inf.
        KeyboardInterrupt: A signal came; the checkpoint is written.
    """
    store = inputs.store
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.manual_seed(recipe.seed)
    student = create_student(recipe, inputs.num_classes).to(device)
    if device.type == "cuda":
        student = student.to(memory_format=torch.channels_last)
    if recipe.sync_bn and world.size > 1:
        student = convert_sync_batchnorm(student)
    task = CachedDistillationTask(student, recipe, device)
    if recipe.ema_decay:
        task.setup_ema(decay=recipe.ema_decay)
    if world.size > 1:
        task.prepare_distributed([device.index] if device.type == "cuda" else None)
        torch.manual_seed(recipe.seed + world.rank)
    forward = torch.compile(task) if recipe.compile else task
    optimizer = create_optimizer(recipe, student)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    config: dict[str, Any] = cast(Any, student).pretrained_cfg
    feed = Input(device, recipe.precision, tuple(config["mean"]), tuple(config["std"]))
    schedule = Schedule(
        store, recipe.views_per_epoch, recipe.batch_size, recipe.seed, recipe.repeats
    )
    scheduler = create_scheduler(recipe, optimizer, schedule.steps)
    replay = Replay(store, inputs.images, schedule, recipe.threads, world)
    place = checkpoint.load(out, task, optimizer, scaler, world) or checkpoint.Progress()
    if place.epoch or place.step:
        log.info("going on at epoch %d, step %d", place.epoch, place.step)

    # Losses are looked at a few dozen at a time: asking for each would stop the GPU every step.
    recent: list[torch.Tensor] = []
    total = recipe.epochs * schedule.steps * recipe.batch_size
    done = (place.epoch * schedule.steps + place.step) * recipe.batch_size
    label = f"{recipe.mode} seed {recipe.seed}"
    with StopRequest() as stop, progress.bar(label, total, "images", done) as advance:
        for epoch in range(place.epoch, recipe.epochs):
            task.train()
            saved = begin = time.monotonic()
            for batch in replay.epoch(epoch, place.step):
                place.wait += time.monotonic() - begin
                x, supervision = feed.batch(batch, store.spec.targets.temperatures)
                if ask is not None:
                    supervision = replace(supervision, soft=said_now(ask, batch, store.spec))
                step = epoch * schedule.steps + place.step
                first = step - place.step % recipe.accumulate  # of the batches of this update
                scheduler.step_update(first)
                task.progress = first / (recipe.epochs * schedule.steps)
                final = place.step + 1 == schedule.steps
                due = final or (place.step + 1) % recipe.accumulate == 0
                with nullcontext() if due else task.no_sync():
                    with feed.autocast():
                        losses = forward(x, supervision)
                    scaler.scale(losses["loss"] / recipe.accumulate).backward()
                recent.append(losses["loss"].detach())
                place.step += 1
                if due:
                    if recipe.clip_grad:
                        scaler.unscale_(optimizer)
                        dispatch_clip_grad(student.parameters(), recipe.clip_grad)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    task.update_ema(step=step)
                advance(recipe.batch_size)
                now = time.monotonic()
                place.seconds, begin = place.seconds + now - begin, now
                late = now - saved > 60 * recipe.checkpoint_minutes
                alone = world.size == 1 and (stop.asked or late)
                if due and (final or alone or len(recent) >= LOOK):
                    asked, late = world.any(stop.asked), world.any(late)
                    place.loss_sum += _sum_of_finite(recent, world, schedule, epoch, place.step)
                    recent.clear()
                    if asked or late:
                        checkpoint.save(out, task, optimizer, scaler, place, world)
                        saved = now
                    if asked:
                        raise KeyboardInterrupt
            row = {"epoch": epoch, "loss": place.loss_sum / schedule.steps}
            row |= _measure(recipe, inputs, task, feed, world)
            if max(row.get("top1", -1.0), row.get("top1_ema", -1.0)) > place.best:
                place.best = max(row.get("top1", -1.0), row.get("top1_ema", -1.0))
                better = task.get_trainable_module(
                    ema=row.get("top1_ema", -1.0) > row.get("top1", -1.0)
                )
                if world.first:
                    save_for_hf(
                        unwrap_model(better), str(out / "model-best"), safe_serialization=True
                    )
            place.history.append(row)
            place.epoch, place.step, place.loss_sum = epoch + 1, 0, 0.0
            checkpoint.save(out, task, optimizer, scaler, place, world)
            lines = "".join(json.dumps(row) + "\n" for row in place.history)
            if world.first:
                files.write(out / "log.jsonl", lines.encode())

    images = recipe.epochs * schedule.steps * recipe.batch_size
    last = place.history[-1]
    result = {
        "student": recipe.student,
        "mode": recipe.mode,
        "top1": last.get("top1"),
        "top1_ema": last.get("top1_ema"),
        "top1_best": place.best if place.best >= 0 else None,
        "images_per_second": round(images / max(place.seconds, 1e-9), 1),
        "data_wait": round(place.wait / max(place.seconds, 1e-9), 4),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "cache_fingerprint": store.spec.fingerprint,
        "seconds": round(place.seconds, 1),
        "loss": last["loss"],
    }
    if world.first:
        _save(task, out)
        run.write_json(out / "result.json", result)
        checkpoint.remove(out)
    return result


def _sum_of_finite(
    recent: list[torch.Tensor], world: World, schedule: Schedule, epoch: int, end: int
) -> float:
    """Sum of the losses, each a mean over all processes, of the steps before `end`.

    Raises:
        NonFinite: One of them is NaN or Inf; names the step and the views that were in it.
    """
    own, total = torch.stack(recent).double().cpu().tolist(), 0.0
    values = [value / world.size for value in world.sum(own)]
    for step, value in enumerate(values, start=end - len(values)):
        if not math.isfinite(value):
            names = ", ".join(schedule.names(epoch, step)[:8])
            raise NonFinite(
                f"the loss is {value} at epoch {epoch}, step {step}; its views begin with {names}. "
                "Lower lr, set clip_grad, or use precision=fp32; the checkpoint before this is "
                "kept."
            )
        total += value
    return total


def _measure(
    recipe: TrainRecipe, inputs: Inputs, task: CachedDistillationTask, feed: Input, world: World
) -> dict[str, float]:
    """Accuracy of the student and its moving average after an epoch."""
    if inputs.validation is None:
        return {}
    size = inputs.store.spec.views.size
    result: dict[str, float] = {}
    for name, ema in (("top1", False), ("top1_ema", True)):
        model = task.get_eval_model(ema=ema)
        if model is None:
            continue
        accuracy = evaluate(model, inputs.validation, feed, size, recipe.eval_crop, world)
        result |= {name: round(accuracy.top1, 3), name.replace("1", "5"): round(accuracy.top5, 3)}
    return result


def _save(task: CachedDistillationTask, out: Path) -> None:
    """The student and its moving average as timm saves networks."""
    save_for_hf(unwrap_model(task.trainable_module), str(out / "model"), safe_serialization=True)
    if task.has_ema():
        ema = unwrap_model(task.get_trainable_module(ema=True))
        save_for_hf(ema, str(out / "model-ema"), safe_serialization=True)
