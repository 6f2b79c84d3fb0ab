"""The training loop, to be read from top to bottom.

Render the views, train on the stored targets (or on the labels), evaluate, save; for one student or
for a cohort of them, each of which trains on the same batch before the next one comes. Everything
that belongs to one student is in `train.trainer.student`, the rhythm of logs and checkpoints in
`train.trainer.cadence`. Everything that is not distillation is timm's: network, optimizer,
schedule, moving average, format of the saved student.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import NonFinite
from cache_tools.runtime import progress
from cache_tools.runtime.device_memory import is_out_of_memory, too_small
from cache_tools.runtime.signals import StopRequest
from train import backends, run_dir
from train.data.batches import Batches
from train.data.device_batch import TeacherFn, online_targets
from train.data.inputs import Inputs
from train.distributed import ALONE, World
from train.evaluate.accuracy import Accuracy, evaluate_all
from train.recipe import TrainRecipe
from train.trainer.cadence import Cadence, StepTimer
from train.trainer.reserve import reserve
from train.trainer.student import StudentTrainer, open_logs

log = logging.getLogger("kdcache")
OnEpoch = Callable[[dict[Path, dict[str, float]]], None]
"""Receives the rows of an epoch that students have just finished, by the folders of their runs."""


def train(
    recipe: TrainRecipe,
    inputs: Inputs,
    out: Path,
    device: torch.device,
    teacher_fn: TeacherFn | None = None,
    world: World = ALONE,
    trackers: tuple[str, ...] = (),
    on_epoch: OnEpoch | None = None,
    place: str = "",
) -> dict[str, Any]:
    """Train one student: a cohort of one; see `train_cohort`.

    Raises:
        NonFinite: The loss became NaN or Inf.
        UsageError: The device has too little memory.
        KeyboardInterrupt: A signal came; the checkpoint is written.
    """
    runs = [(out, recipe)]
    try:
        [result] = train_cohort(
            runs, inputs, device, teacher_fn, world, trackers, on_epoch, place=place
        )
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise too_small(recipe.student, error) from None
        raise
    if isinstance(result, NonFinite):
        raise result
    return result


def train_cohort(  # noqa: PLR0912 - the one long function
    runs: Sequence[tuple[Path, TrainRecipe]],
    inputs: Inputs,
    device: torch.device,
    teacher_fn: TeacherFn | None = None,
    world: World = ALONE,
    trackers: tuple[str, ...] = (),
    on_epoch: OnEpoch | None = None,
    stop: StopRequest | None = None,
    place: str = "",
) -> list[dict[str, Any] | NonFinite]:
    """Train students on the same views, each batch made and moved to the device once for a size.

    Pictures are decoded once, whatever the sizes at which the students are shown their views.

    Each resumes from its own checkpoint: one that is ahead of the others waits for them, one with
    fewer epochs leaves early, and a student whose loss is NaN or Inf leaves while the others go on.

    Args:
        runs: Folder of each run, prepared by `run_dir.init_run`, and its recipe; the recipes agree
            in `TrainRecipe.stream`.
        inputs: Cache and data, checked by `inputs.check_inputs` unless the recipes have `follow`.
        device: Device of the training.
        teacher_fn: The teacher in the loop, for mode online.
        world: The processes that train together.
        trackers: Logs beside JSONL and TensorBoard, see `trackers.PLACES`.
        on_epoch: Callback after every finished epoch.
        stop: Request to stop; None: a signal while this runs.
        place: Which training of how many this is, "1 of 8", for the progress bar.

    Returns:
        Of each student the content of result.json, or the error with which it left.

    Raises:
        KeyboardInterrupt: A signal came; the checkpoints are written.
        CacheIncomplete: The cache that is followed is made no more; likewise.
    """
    shared, own_size = runs[0][1], inputs.store.spec.views.size
    backends.configure(device, shared.deterministic)
    if any(recipe.compile for _, recipe in runs):
        torch.compiler.reset()  # of one function it keeps no more than a few networks' code
    epochs = max(recipe.epochs for _, recipe in runs)
    batches = Batches.of_recipe(shared, inputs, device, world, epochs)
    students = [
        StudentTrainer(recipe, inputs, out, device, batches, world, trackers)
        for out, recipe in runs
    ]
    if any(len(student.recipe.phases) > 1 and not student.finished for student in students):
        reserve(students, batches, inputs, world)

    label = f"{len(runs)} students" if len(runs) > 1 else f"{shared.mode} seed {shared.seed}"
    label += f" ({place})" if place else ""
    views = batches.total(epochs, lambda of: of.steps * of.batch_size)
    done = min(student.views for student in students)
    results: dict[Path, dict[str, Any] | NonFinite] = {}

    def sizes(epoch: int) -> list[int]:
        shown = [s.recipe for s in students if s.progress.epoch <= epoch < s.recipe.epochs]
        return sorted({recipe.size_at(epoch, own_size) for recipe in shown})

    @contextmanager
    def leaving(student: StudentTrainer) -> Iterator[None]:
        try:
            yield
        except NonFinite as error:
            students.remove(student)
            results[student.out] = error
            student.close(error)

    with (
        run_dir.hold(*(out for out, _ in runs if world.is_main)),
        nullcontext(stop) if stop else StopRequest() as signals,
        open_logs(students),
        progress.bar(label, views, "images", done) as advance,
    ):
        cadence = Cadence(shared, world, signals)
        for epoch in range(epochs + 1):
            for student in [one for one in students if one.finished]:
                with leaving(student):
                    content = batches.follower.content() if batches.follower else {}
                    results[student.out] = student.finish(content)
                    students.remove(student)
            group = [student for student in students if student.progress.epoch == epoch]
            if not group:
                continue
            schedule = batches.schedule_of(epoch)
            if batches.follower is not None:
                with advance.paused():
                    batches.follower.wait(schedule.view_numbers(epoch), signals)
            for student in group:
                student.task.train()
            step = min(student.progress.step for student in group)
            cadence.start_epoch(schedule.steps)
            timer = StepTimer()
            for of_size in batches.sized(epoch, step, sizes):
                timer.batch_ready()
                turn = [student for student in group if student.progress.step == step]
                online = None
                if teacher_fn and any(one.recipe.mode == "online" for one in turn):
                    online = partial(online_targets, teacher_fn, spec=inputs.store.spec)
                moved = {
                    size: batches.move(batch, online)
                    for size, batch in of_size.items()
                    if size in {one.size for one in turn}
                }
                transforms = {(one.size, one.transform.normalisation): one for one in turn}
                inputs_of = {
                    (size, key): one.transform.normalise(moved[size].pixels)
                    for (size, key), one in transforms.items()
                }
                first = step - step % shared.grad_accum_steps  # the last group may be smaller
                accumulated = min(shared.grad_accum_steps, schedule.steps - first)
                step += 1
                sync = step == first + accumulated

                for student in turn:
                    with student.turn(sync_gradients=sync):
                        x = inputs_of[student.size, student.transform.normalisation]
                        batch = moved[student.size]
                        targets = student.targets(batch.targets, batch.online)
                        with student.transform.autocast():
                            losses = student.forward(x, targets)  # logits, then `train.loss.losses`
                        loss = losses["loss"] / accumulated
                        student.scaler.scale(loss).backward()
                        if sync:
                            student.update()
                        student.end_step(losses)

                advance(schedule.batch_size)
                timer.end_step(turn)
                due = cadence.after(step, updated=sync)
                if due is None:
                    continue
                note = ""
                for student in turn:
                    with leaving(student):
                        student.check_losses()
                        note = student.log_steps() if due.log else note
                        if due.save:
                            student.save()
                group = [student for student in group if student in students]
                if due.log:
                    advance(0, note)
                if due.stop:
                    raise KeyboardInterrupt
                if not group:
                    break
            with advance.paused():  # the rate is that of the training alone
                for student in group:
                    student.average_batch_norm()
                accuracies = _evaluate(group, inputs, world)
                rows = {}
                for student in group:
                    with leaving(student):
                        rows[student.out] = student.end_epoch(accuracies[student])
                if on_epoch is not None and rows:
                    on_epoch(rows)
    return [results[out] for out, _ in runs]


def _evaluate(
    group: Sequence[StudentTrainer], inputs: Inputs, world: World
) -> dict[StudentTrainer, dict[str, Accuracy]]:
    """Evaluate students and their moving averages after an epoch, by name."""
    accuracies: dict[StudentTrainer, dict[str, Accuracy]] = {student: {} for student in group}
    if inputs.validation is None or not group:
        return accuracies
    models = [(one, name, m) for one in group for name, m in one.eval_models().items()]
    found = evaluate_all([model for _, _, model in models], inputs.validation, world)
    for (student, name, _), accuracy in zip(models, found, strict=True):
        accuracies[student][name] = accuracy
    return accuracies
