"""One student of a cohort: all that is its own, and one step of it.

`train.trainer.loop` hands every batch to each student in turn. Dropout and stochastic depth draw
from torch's generators, which belong to the process; so a student keeps their states as its own and
puts them in place for its turn. That is what makes a student of a cohort, on a CPU bit for bit, the
one that trains alone.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.models import save_for_hf
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import nn

from cache_tools.errors import NonFinite
from train import run_dir
from train.data.device_batch import DeviceBatch, InputTransform
from train.data.inputs import Inputs
from train.data.schedule import Schedule
from train.distributed import World
from train.evaluate.accuracy import Accuracy
from train.evaluate.crops import Frame, preprocessing
from train.loss.targets import SoftTargets, most_probable
from train.loss.task import CachedDistillationTask
from train.recipe import TrainRecipe
from train.trainer import checkpoint
from train.trainer import log as logs
from train.trainer.factory import create_optimizer, create_scheduler, create_student

log = logging.getLogger("kdcache")


class Learner:
    """A student with its optimizer, schedule, average, scaler, checkpoint and log."""

    def __init__(
        self,
        recipe: TrainRecipe,
        inputs: Inputs,
        out: Path,
        device: torch.device,
        schedule: Schedule,
        world: World,
        also: tuple[str, ...] = (),
    ) -> None:
        """Create the student, or take it up where its last checkpoint left it.

        Args:
            recipe: What to do.
            inputs: Cache and data.
            out: Folder of the run.
            device: Where it trains.
            schedule: The order of views that it sees.
            world: The processes that train it together.
            also: Where to log beside JSONL and TensorBoard.
        """
        self.recipe, self.out = recipe, out
        self._inputs, self._schedule, self._world = inputs, schedule, world
        self._also = also
        torch.manual_seed(recipe.seed)
        student: Any = create_student(recipe, inputs.num_classes).to(device)
        seen = Frame(inputs.store.spec.views.size, recipe.crop_pct)
        student.pretrained_cfg = config = preprocessing(dict(student.pretrained_cfg), seen)
        if device.type == "cuda":
            student = student.to(memory_format=torch.channels_last)
        if recipe.sync_bn and world.size > 1:
            student = convert_sync_batchnorm(student)
        self._student = student
        self.task = CachedDistillationTask(student, recipe, device)
        if recipe.model_ema_decay:
            self.task.setup_ema(decay=recipe.model_ema_decay)
        if world.size > 1:
            self.task.prepare_distributed([device.index] if device.type == "cuda" else None)
            torch.manual_seed(recipe.seed + world.rank)
        self._forward = torch.compile(self.task) if recipe.compile else self.task
        self._optimizer = create_optimizer(recipe, student)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.feed = InputTransform(
            device, recipe.precision, tuple(config["mean"]), tuple(config["std"])
        )
        self._scheduler = create_scheduler(recipe, self._optimizer, schedule.steps)
        found = checkpoint.load(out, self.task, self._optimizer, self._scaler, world)
        self.place = found or checkpoint.Progress()
        """Where it is."""
        if self.place.epoch or self.place.step:
            log.info("going on at epoch %d, step %d", self.place.epoch, self.place.step)
        self._numbers = checkpoint.generators(device)
        # Losses are looked at a few dozen at a time: asking for each would stop the GPU every step.
        self._recent: list[dict[str, torch.Tensor]] = []
        self._open = ExitStack()
        self.busy = 0.0
        """Seconds that the last step took; on a GPU, how long it took to ask for it."""

    def open(self) -> None:
        """Open the log; before the first step."""
        facts = {**asdict(self.recipe), "cache_fingerprint": self._inputs.store.spec.fingerprint}
        book = logs.opened(self.out, self.place, self.steps, self._world, self._also, facts)
        self._book = self._open.enter_context(book)

    def close(self, error: BaseException | None = None) -> None:
        """Close the log, which is told what went wrong; a second time this does nothing."""
        self._open.__exit__(type(error) if error else None, error, None)

    @property
    def steps(self) -> int:
        """Steps done since the run began."""
        return self.place.epoch * self._schedule.steps + self.place.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.place.epoch >= self.recipe.epochs

    def step(self, arrived: DeviceBatch, said: SoftTargets | None, due: bool) -> None:
        """Learn from one batch.

        Args:
            arrived: The batch.
            said: What a teacher in the loop says of it, for mode online.
            due: Whether an update follows; else gradients are added up.
        """
        begin = time.monotonic()
        recipe, step = self.recipe, self.steps
        first = step - self.place.step % recipe.grad_accum_steps  # of the batches of this update
        self._scheduler.step_update(first)
        self.task.progress = first / (recipe.epochs * self._schedule.steps)
        x, supervision = arrived.seen_by(self.feed), arrived.supervision
        if said is not None and recipe.mode == "online":
            supervision = replace(supervision, soft=said)
        if recipe.top_k:
            labels = torch.stack([supervision.label_B, supervision.partner_label_B], dim=1)
            told = recipe.top_k, self._inputs.num_classes, labels
            supervision = replace(supervision, soft=most_probable(supervision.soft, *told))
        with self._own_numbers(), nullcontext() if due else self.task.no_sync():
            with self.feed.autocast():
                losses = self._forward(x, supervision)
            self._scaler.scale(losses["loss"] / recipe.grad_accum_steps).backward()
            self._recent.append({k: v.detach() for k, v in losses.items() if k != "output"})
            self.place.step += 1
            if due:
                self._update(step)
        self.busy = time.monotonic() - begin

    def _update(self, step: int) -> None:
        if self.recipe.clip_grad:
            self._scaler.unscale_(self._optimizer)
            dispatch_clip_grad(self._student.parameters(), self.recipe.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self.task.update_ema(step=step)

    def passed(self, seconds: float, waited: float, rest: float) -> None:
        """Take note of the time since the last batch.

        Args:
            seconds: The time of the whole cohort: a batch comes when all are done with the last.
            waited: How much of it was waiting for the batch.
            rest: What this student has to bear of the time that was nobody's own step.
        """
        self.place.seconds += seconds
        self.place.wait += waited
        self.place.cost += self.busy + rest

    def look(self) -> None:
        """Add the loss's terms of the last steps, each a mean over all processes, to the place.

        Raises:
            NonFinite: A loss is NaN or Inf; names the step and the views that were in it.
        """
        place, recent = self.place, self._recent
        terms = [(step, name, v) for step, row in enumerate(recent) for name, v in row.items()]
        own = torch.stack([value.float() for _, _, value in terms]).double().cpu().tolist()
        first = place.step - len(recent)
        for (step, name, _), total in zip(terms, self._world.sum(own), strict=True):
            value = total / self._world.size
            if name == "loss":
                if not math.isfinite(value):
                    raise _non_finite(value, self._schedule, place.epoch, first + step)
                place.loss_sum += value
            so_far, count = place.terms.get(name, (0.0, 0))
            place.terms[name] = [so_far + value, count + 1]
        recent.clear()

    def note(self) -> str:
        """Write a row for the steps since the last one; returns it in short."""
        rate = max(group["lr"] for group in self._optimizer.param_groups)
        return self._book.steps(self.place.epoch, self.steps, self.recipe.batch_size, rate)

    def save(self) -> None:
        """Write the checkpoint."""
        with self._own_numbers():
            checkpoint.save(
                self.out, self.task, self._optimizer, self._scaler, self.place, self._world
            )

    def measured(self, size: int) -> dict[str, tuple[nn.Module, InputTransform, Frame]]:
        """The networks to be measured after an epoch, by the names of their accuracies."""
        models = {name: self.task.get_eval_model(ema=ema) for name, ema in _TOP1.items()}
        frame = Frame(size, self.recipe.crop_pct)
        return {name: (m, self.feed, frame) for name, m in models.items() if m is not None}

    def end_epoch(self, accuracies: dict[str, Accuracy]) -> dict[str, float]:
        """Close the epoch: its row, the best student so far, a checkpoint.

        Args:
            accuracies: By the names of `measured`; empty when there is nothing to measure on.

        Returns:
            The row.
        """
        place = self.place
        row = {"epoch": place.epoch, "loss": place.loss_sum / self._schedule.steps}
        for name, found in accuracies.items():
            row |= {name: round(found.top1, 3), name.replace("1", "5"): round(found.top5, 3)}
        ema = row.get("top1_ema", -1.0) > row.get("top1", -1.0)
        if (top1 := row.get("top1_ema" if ema else "top1", -1.0)) > place.best:
            place.best = top1
            if self._world.is_main:
                better = self.task.get_trainable_module(ema=ema)
                _save(better, self.out / "model-best")
        place.history.append(row)
        place.epoch, place.step, place.loss_sum = place.epoch + 1, 0, 0.0
        self._book.epoch(self.steps)
        self.save()
        return row

    def finish(self) -> dict[str, Any]:
        """Close the log, save the student, write the result and remove the checkpoint.

        Returns:
            The content of result.json.
        """
        self.close()
        recipe, place, last = self.recipe, self.place, self.place.history[-1]
        views = recipe.epochs * self._schedule.steps * recipe.batch_size
        result = {
            "student": recipe.student,
            "mode": recipe.mode,
            "top1": last.get("top1"),
            "top1_ema": last.get("top1_ema"),
            "top1_best": place.best if place.best >= 0 else None,
            "images_per_second": round(views / max(place.seconds, 1e-9), 1),
            "data_wait": round(place.wait / max(place.seconds, 1e-9), 4),
            "epochs": recipe.epochs,
            "images": views,
            "seed": recipe.seed,
            "cache_fingerprint": self._inputs.fingerprint,
            "seconds": round(place.seconds, 1),
            "cost_seconds": round(place.cost, 2),
            "parameters": sum(p.numel() for p in self._student.parameters()),
            "loss": last["loss"],
        }
        if self._inputs.coverage.missing:
            result["coverage"] = self._inputs.coverage.facts
        if self._world.is_main:
            _save(self.task.trainable_module, self.out / "model")
            if self.task.has_ema():
                _save(self.task.get_trainable_module(ema=True), self.out / "model-ema")
            run_dir.write_json(self.out / "result.json", result)
            checkpoint.remove(self.out)
        return result

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Draw from this student's random numbers while the body runs."""
        device = self.feed.device
        checkpoint.restore(self._numbers, device)
        try:
            yield
        finally:
            self._numbers = checkpoint.generators(device)


@contextmanager
def logging_to(learners: list[Learner]) -> Iterator[None]:
    """Keep the logs of students open while the body runs; it may take students off the list."""
    try:
        for learner in learners:
            learner.open()
        yield
    except BaseException as error:
        for learner in learners:
            learner.close(error)
        raise
    for learner in learners:
        learner.close()


_TOP1 = {"top1": False, "top1_ema": True}
"""Name of an accuracy → whether it is the moving average's."""


def _save(model: nn.Module | None, folder: Path) -> None:
    """A network as timm saves it."""
    assert model is not None
    save_for_hf(unwrap_model(model), str(folder), safe_serialization=True)


def _non_finite(value: float, schedule: Schedule, epoch: int, step: int) -> NonFinite:
    names = ", ".join(schedule.names(epoch, step)[:8])
    return NonFinite(
        f"the loss is {value} at epoch {epoch}, step {step}; its views begin with {names}. "
        "Lower lr, set clip_grad, or use precision=fp32; the checkpoint before this is kept."
    )
