"""The training loop, to be read from top to bottom.

Replay the views, learn from the stored targets (or from the labels), measure, save; for one student
or for a cohort of them, each of which learns from the same batch before the next one comes. What is
a student's own stands in `train.trainer.student`. Everything that is not distillation is timm's:
network, optimizer, schedule, moving average, format of the saved student.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import NonFinite
from cache_tools.runtime import progress
from cache_tools.runtime.signals import StopRequest
from train.data import create_loader
from train.data.device_batch import Ask, DeviceBatch, online_targets
from train.data.inputs import Inputs
from train.data.schedule import Schedule
from train.distributed import ALONE, World
from train.evaluate.accuracy import Accuracy, evaluate_all
from train.recipe import TrainRecipe
from train.trainer.student import Learner, logging_to

log = logging.getLogger("kdcache")
LOOK = 32
"""Steps after which the losses are looked at and a row is logged."""
Told = Callable[[dict[Path, dict[str, float]]], None]
"""Takes the rows of an epoch that students have just finished, by the folders of their runs."""


def train(
    recipe: TrainRecipe,
    inputs: Inputs,
    out: Path,
    device: torch.device,
    ask: Ask | None = None,
    world: World = ALONE,
    also: tuple[str, ...] = (),
    told: Told | None = None,
) -> dict[str, Any]:
    """Train one student: a cohort of one; see `train_cohort`.

    Raises:
        NonFinite: The loss became NaN or Inf.
        KeyboardInterrupt: A signal came; the checkpoint is written.
    """
    [result] = train_cohort([(out, recipe)], inputs, device, ask, world, also, told)
    if isinstance(result, NonFinite):
        raise result
    return result


def train_cohort(  # noqa: PLR0912 - the one long function
    students: Sequence[tuple[Path, TrainRecipe]],
    inputs: Inputs,
    device: torch.device,
    ask: Ask | None = None,
    world: World = ALONE,
    also: tuple[str, ...] = (),
    told: Told | None = None,
    stop: StopRequest | None = None,
) -> list[dict[str, Any] | NonFinite]:
    """Train students on the same views, each batch made and moved to the device once for all.

    Each goes on from its own checkpoint: one that is ahead of the others waits for them, one with
    fewer epochs leaves early, and when a loss is no number its student leaves and the others go on.

    Args:
        students: Folder of each run, prepared by `run_dir.init_run`, and its recipe; the recipes
            agree in `TrainRecipe.stream`.
        inputs: Cache and data, checked by `inputs.check_inputs`.
        device: Where to train.
        ask: The teacher in the loop, for mode online.
        world: The processes that train together.
        also: Where to log beside JSONL and TensorBoard, see `curves.PLACES`.
        told: Who is told of every finished epoch.
        stop: What asks to stop; None: a signal while this runs.

    Returns:
        Of each student the content of result.json, or why it has left.

    Raises:
        KeyboardInterrupt: A signal came; the checkpoints are written.
    """
    store, shared = inputs.store, students[0][1]
    torch.use_deterministic_algorithms(shared.deterministic)
    if any(recipe.compile for _, recipe in students):
        torch.compiler.reset()  # of one function it keeps no more than a few networks' code
    epochs = max(recipe.epochs for _, recipe in students)
    schedule = Schedule.of(shared, inputs, epochs)
    learners = [
        Learner(recipe, inputs, out, device, schedule, world, also) for out, recipe in students
    ]
    loader = create_loader.create(shared, inputs, schedule, world, device.type == "cuda")

    stride = shared.grad_accum_steps * math.ceil(LOOK / shared.grad_accum_steps)
    views = epochs * schedule.steps * shared.batch_size
    done = min(learner.steps for learner in learners) * shared.batch_size
    results: dict[Path, dict[str, Any] | NonFinite] = {}
    with (
        nullcontext(stop) if stop else StopRequest() as signals,
        logging_to(learners),
        progress.bar(_label(students), views, "images", done) as advance,
    ):
        for epoch in range(epochs + 1):
            for learner in [one for one in learners if one.finished]:
                learners.remove(learner)
                results[learner.out] = learner.finish()
            group = [learner for learner in learners if learner.place.epoch == epoch]
            if not group:
                continue
            for learner in group:
                learner.task.train()
            step = min(learner.place.step for learner in group)
            saved = begin = time.monotonic()
            for batch in loader.epoch(epoch, step):
                waited = time.monotonic() - begin
                turn = [learner for learner in group if learner.place.step == step]
                arrived = DeviceBatch(batch, inputs.members.temperatures, device)
                online = ask is not None and any(one.recipe.mode == "online" for one in turn)
                said = online_targets(ask, batch, store.spec) if ask and online else None
                step += 1
                final = step == schedule.steps
                due = final or step % shared.grad_accum_steps == 0
                for learner in turn:
                    learner.step(arrived, said, due)
                advance(shared.batch_size)
                now = time.monotonic()
                rest = (now - begin - sum(learner.busy for learner in turn)) / max(len(turn), 1)
                for learner in turn:
                    learner.passed(now - begin, waited, rest)
                begin = now
                late = now - saved > 60 * shared.checkpoint_minutes
                alone = world.size == 1 and (signals.requested or late)
                regular = final or step % stride == 0  # the same steps, whatever happens
                if regular or (due and alone):
                    asked, late = world.any(signals.requested), world.any(late)
                    note = ""
                    for learner in turn:
                        try:
                            learner.look()
                        except NonFinite as error:
                            group.remove(learner)
                            learners.remove(learner)
                            results[learner.out] = error
                            learner.close(error)
                            continue
                        note = learner.note() if regular else note
                        if asked or late:
                            learner.save()
                    if regular:
                        advance(0, note)
                    saved = now if late else saved
                    if asked:
                        raise KeyboardInterrupt
                    if not group:
                        break
            accuracies = _measure(group, inputs, world)
            rows = {one.out: one.end_epoch(accuracies[one]) for one in group}
            if told is not None and rows:
                told(rows)
    return [results[out] for out, _ in students]


def _label(students: Sequence[tuple[Path, TrainRecipe]]) -> str:
    if len(students) > 1:
        return f"{len(students)} students"
    [(_, recipe)] = students
    return f"{recipe.mode} seed {recipe.seed}"


def _measure(
    group: Sequence[Learner], inputs: Inputs, world: World
) -> dict[Learner, dict[str, Accuracy]]:
    """Accuracies of students and their moving averages after an epoch, by name."""
    accuracies: dict[Learner, dict[str, Accuracy]] = {learner: {} for learner in group}
    if inputs.validation is None or not group:
        return accuracies
    size = inputs.store.spec.views.size
    asked = [(one, name, model) for one in group for name, model in one.measured(size).items()]
    found = evaluate_all([model for _, _, model in asked], inputs.validation, world)
    for (learner, name, _), accuracy in zip(asked, found, strict=True):
        accuracies[learner][name] = accuracy
    return accuracies
