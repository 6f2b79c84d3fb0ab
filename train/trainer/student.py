"""One student of a cohort: its network, optimizer, schedule, random numbers, checkpoint and log.

`train.trainer.loop` passes every batch to each student in turn. Dropout and stochastic depth draw
from torch's generators, which belong to the process; so a student keeps a copy of their states and
restores it for its turn. That makes a student of a cohort, on a CPU bit for bit, the one that
trains alone.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import nn
from torch.nn.utils import get_total_norm

from cache_tools.errors import NonFinite
from cache_tools.runtime import threads
from cache_tools.storage import atomic, seal, system_errors
from train import networks, run_dir
from train.data.batches import Batches
from train.data.device_batch import InputTransform
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


class StudentTrainer:
    """A student with its optimizer, schedule, moving average, scaler, checkpoint and log."""

    def __init__(
        self,
        recipe: TrainRecipe,
        inputs: Inputs,
        out: Path,
        device: torch.device,
        batches: Batches,
        world: World,
        trackers: tuple[str, ...] = (),
    ) -> None:
        """Create the student, or restore it from its last checkpoint."""
        self.recipe, self.out = recipe, out
        self._inputs, self._batches, self._world = inputs, batches, world
        self._trackers = trackers
        self._updates = self._updates_of(batches.schedule_of(0))
        """Updates of an epoch of the first phase, the unit of the learning rate's schedule."""
        torch.manual_seed(recipe.seed)
        student: Any = create_student(recipe, inputs.num_classes).to(device)
        self._own_size = own = inputs.store.spec.views.size
        seen = Frame(recipe.measured_size(own), recipe.crop_pct)
        known = dict(student.pretrained_cfg)
        student.pretrained_cfg = config = preprocessing(known, seen, recipe.train_size(own))
        if device.type == "cuda":
            student = student.to(memory_format=torch.channels_last)
        if recipe.sync_bn and world.size > 1:
            student = convert_sync_batchnorm(student)
        self.module: nn.Module = student
        """The network itself, which the task may have wrapped."""
        self.task = CachedDistillationTask(student, recipe, device)
        if recipe.model_ema_decay:
            self.task.setup_ema(recipe.model_ema_decay, recipe.model_ema_warmup)
        if world.size > 1:
            self.task.prepare_distributed([device.index] if device.type == "cuda" else None)
            torch.manual_seed(recipe.seed + world.rank)
        # each size of a schedule is compiled once: code for all of them would be slower
        fixed = False if len(recipe.phases) > 1 else None
        self.forward = torch.compile(self.task, dynamic=fixed) if recipe.compile else self.task
        self.optimizer = create_optimizer(recipe, student)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.transform = InputTransform(
            device, recipe.precision, tuple(config["mean"]), tuple(config["std"])
        )
        self._scheduler: Any = create_scheduler(recipe, self.optimizer, self._updates)
        found = checkpoint.load(out, self.task, self.optimizer, self.scaler, world)
        self.progress = found or checkpoint.Progress()
        """Epochs and steps done, and sums over them."""
        if self.progress.epoch or self.progress.step:
            log.info("going on at epoch %d, step %d", self.progress.epoch, self.progress.step)
        self._rng_state = checkpoint.generators(device)
        # Losses are read a few dozen at a time: reading each would stall the GPU every step.
        self._recent: list[dict[str, torch.Tensor]] = []
        self._open = ExitStack()
        self.busy = 0.0
        """Seconds of the last step; on a GPU, of launching it."""

    def open(self) -> None:
        """Open the log; before the first step."""
        facts = {**asdict(self.recipe), "cache_fingerprint": self._inputs.store.spec.fingerprint}
        book = logs.open_log(
            self.out, self.progress, self.steps, self._world, self._trackers, facts
        )
        self._book = self._open.enter_context(book)

    def close(self, error: BaseException | None = None) -> None:
        """Close the log, with the error that ended the run; a second call does nothing."""
        self._open.__exit__(type(error) if error else None, error, None)

    @property
    def steps(self) -> int:
        """Steps done since the run began."""
        done = self._batches.total(self.progress.epoch, lambda of: of.steps)
        return done + self.progress.step

    @property
    def views(self) -> int:
        """Views shown since the run began."""
        done = self._batches.total(self.progress.epoch, lambda of: of.steps * of.batch_size)
        return done + self.progress.step * self._schedule.batch_size

    @property
    def updates(self) -> int:
        """Updates done since the run began."""
        of_epoch = self.progress.step // self.recipe.grad_accum_steps
        return self._batches.total(self.progress.epoch, self._updates_of) + of_epoch

    @property
    def position(self) -> float:
        """Updates done if every epoch had those of the first phase: rates go by the share done."""
        of_epoch = self.progress.step // self.recipe.grad_accum_steps
        updates = self._updates_of(self._schedule)
        scaled = of_epoch if updates == self._updates else of_epoch * self._updates / updates
        return self.progress.epoch * self._updates + scaled

    @property
    def _schedule(self) -> Schedule:
        return self._batches.schedule_of(self.progress.epoch)

    def _updates_of(self, schedule: Schedule) -> int:
        return math.ceil(schedule.steps / self.recipe.grad_accum_steps)

    @property
    def size(self) -> int:
        """Pixels a side of the views that it is shown in this epoch."""
        return self.size_at(self.progress.epoch)

    def size_at(self, epoch: int) -> int:
        """Return the pixels a side of the views that it is shown in an epoch."""
        return self.recipe.size_at(epoch, self._own_size)

    @property
    def finished(self) -> bool:
        """True if all epochs are done."""
        return self.progress.epoch >= self.recipe.epochs

    @contextmanager
    def turn(self, sync_gradients: bool) -> Iterator[None]:
        """Run one step in the body: with this student's rates and random numbers, and timed.

        An update ends the step if `sync_gradients`; otherwise gradients accumulate.
        """
        begin = time.monotonic()
        self._scheduler.step(self.progress.epoch)  # of timm's two, the recipe's is in effect
        self._scheduler.step_update(self.position)
        self.task.progress = self.position / (self.recipe.epochs * self._updates)
        sync = nullcontext() if sync_gradients else self.task.no_sync()
        with self.rng_state(), self._threads(), sync:
            yield
        self.busy = time.monotonic() - begin

    def targets(self, cached: SoftTargets, online: SoftTargets | None) -> SoftTargets:
        """Select targets: those of the cache or of the teacher in the loop, and of them top_k."""
        found = online if online is not None and self.recipe.mode == "online" else cached
        return most_probable(found, self.recipe.top_k) if self.recipe.top_k else found

    def update(self) -> None:
        """Update weights and their moving average with the accumulated gradients."""
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.module.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.task.has_ema():
            self.average_batch_norm()
        self.task.update_ema(step=self.updates + 1)

    def average_batch_norm(self) -> None:
        """Average the running statistics of batch normalisation over all processes.

        Each process counts its own views. They are averaged before the moving average takes them
        in and before an evaluation, so that all processes evaluate, and process 0 saves, the same
        network.
        """
        buffers = self.module.named_buffers()
        self._world.average([b for name, b in buffers if name.endswith(_RUNNING)])

    def end_step(self, losses: dict[str, torch.Tensor]) -> None:
        """Count the step and keep its losses for `check_losses`."""
        self._recent.append({k: v.detach() for k, v in losses.items() if k != "output"})
        self.progress.step += 1

    def record_time(self, seconds: float, waited: float, rest: float) -> None:
        """Add the time since the last batch.

        Args:
            seconds: The time of the whole cohort: a batch comes when all are done with the last.
            waited: How much of it was waiting for the batch.
            rest: This student's share of the time outside any student's step.
        """
        self.progress.seconds += seconds
        self.progress.wait += waited
        self.progress.cost += self.busy + rest

    def check_losses(self) -> None:
        """Add the loss's terms of the last steps, each a mean over all processes, to the progress.

        Raises:
            NonFinite: A loss is NaN or Inf (names the step and its views), or a weight is.
        """
        progress, recent = self.progress, self._recent
        terms = [(step, name, v) for step, row in enumerate(recent) for name, v in row.items()]
        values = [value.float() for _, _, value in terms]
        own = torch.stack([*values, self._largest_weight().float()]).double().cpu().tolist()
        first = progress.step - len(recent)
        *totals, largest = self._world.sum(own)
        for (step, name, _), total in zip(terms, totals, strict=True):
            value = total / self._world.size
            if name == "loss":
                if not math.isfinite(value):
                    at = first + step
                    names = ", ".join(self._schedule.names(progress.epoch, at)[:8])
                    reason, views = f"the loss is {value}", f"; its views begin with {names}"
                    raise NonFinite(_BROKEN.format(reason, progress.epoch, at, views))
                progress.loss_sum += value
            so_far, count = progress.terms.get(name, (0.0, 0))
            progress.terms[name] = [so_far + value, count + 1]
        recent.clear()
        if not math.isfinite(largest):
            raise NonFinite(_BROKEN.format(_WEIGHT, progress.epoch, progress.step, ""))

    def _largest_weight(self) -> torch.Tensor:
        """Largest absolute value in the student and its moving average: NaN or Inf if one is."""
        models = self.module, self.task.get_trainable_module(ema=True)
        states = [value for model in models if model for value in model.state_dict().values()]
        weights = [value for value in states if value.is_floating_point() and value.numel()]
        return get_total_norm(weights, math.inf)

    def log_steps(self) -> str:
        """Log a row for the steps since the last one; return it in short."""
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return self._book.steps(self.progress.epoch, self.steps, self._schedule.batch_size, rate)

    def save(self) -> None:
        """Write the checkpoint, after the digests of the logs up to it."""
        self._book.seal()
        with self.rng_state():
            checkpoint.save(
                self.out, self.task, self.optimizer, self.scaler, self.progress, self._world
            )

    def eval_models(self) -> dict[str, tuple[nn.Module, InputTransform, Frame]]:
        """Return the networks to evaluate after an epoch, by the names of their accuracies."""
        models = {name: self.task.get_eval_model(ema=ema) for name, ema in _TOP1.items()}
        frame = Frame(self.recipe.measured_size(self._own_size), self.recipe.crop_pct)
        return {name: (m, self.transform, frame) for name, m in models.items() if m is not None}

    def end_epoch(self, accuracies: dict[str, Accuracy]) -> dict[str, float]:
        """Close the epoch: its row (returned), the best student so far, a checkpoint.

        The accuracies have the names of `eval_models`; there are none without a validation split.

        Raises:
            NonFinite: The student predicts NaN or Inf on the validation split.
        """
        progress = self.progress
        if not all(found.finite for found in accuracies.values()):
            what = "predictions on the validation split are NaN or Inf"
            raise NonFinite(_BROKEN.format(what, progress.epoch, progress.step, ""))
        row = {"epoch": progress.epoch, "loss": progress.loss_sum / self._schedule.steps}
        for name, found in accuracies.items():
            row |= {name: round(found.top1, 3), name.replace("1", "5"): round(found.top5, 3)}
        ema = row.get("top1_ema", -1.0) > row.get("top1", -1.0)
        if (top1 := row.get("top1_ema" if ema else "top1", -1.0)) > progress.best:
            progress.best = top1
            if self._world.is_main:
                better = self.task.get_trainable_module(ema=ema)
                self._save_network(better, "model-best")
        progress.history.append(row)
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        self._book.epoch(self.steps)
        self.save()
        return row

    def finish(self, content: dict[str, Any]) -> dict[str, Any]:
        """Close the log, save the student, write the result and remove the checkpoint.

        Args:
            content: Facts of a cache that was followed, for the result.

        Returns:
            The content of result.json.

        Raises:
            NonFinite: A weight is NaN or Inf, of a checkpoint that an earlier kdcache wrote.
        """
        self.close()
        if not math.isfinite(self._largest_weight()):
            raise NonFinite(_BROKEN.format(_WEIGHT, self.progress.epoch, 0, ""))
        recipe, progress, last = self.recipe, self.progress, self.progress.history[-1]
        views = self._batches.total(recipe.epochs, lambda of: of.steps * of.batch_size)
        result = {
            "student": recipe.student,
            "mode": recipe.mode,
            "top1": last.get("top1"),
            "top1_ema": last.get("top1_ema"),
            "top1_best": progress.best if progress.best >= 0 else None,
            "images_per_second": round(views / max(progress.seconds, 1e-9), 1),
            "data_wait": round(progress.wait / max(progress.seconds, 1e-9), 4),
            "epochs": recipe.epochs,
            "images": views,
            "seed": recipe.seed,
            "size": recipe.train_size(self._own_size),
            "eval_size": recipe.measured_size(self._own_size),
            "cache_fingerprint": self._inputs.fingerprint,
            "seconds": round(progress.seconds, 1),
            "cost_seconds": round(progress.cost, 2),
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "loss": last["loss"],
            **content,
        }
        if self._inputs.coverage.missing:
            result["coverage"] = self._inputs.coverage.facts
        if self._world.is_main:
            self._save_network(self.task.trainable_module, "model")
            if self.task.has_ema():
                self._save_network(self.task.get_trainable_module(ema=True), "model-ema")
            self._book.seal()
            run_dir.write_json(self.out / "result.json", result)
            checkpoint.remove(self.out)
        return result

    def _save_network(self, model: nn.Module | None, name: str) -> None:
        """Save a network in timm's format, each file whole or not at all, with its digest."""
        assert model is not None
        kwargs = self.recipe.student_kwargs.items()  # as timm: without rates, which train alone
        args = {key: value for key, value in kwargs if not key.endswith("_rate")}
        folder = self.out / name
        with system_errors.writing(folder), atomic.temporary(folder, folder=True) as made:
            networks.save(unwrap_model(model), made, args=args)
            for file in sorted(made.iterdir()):
                seal.write(self.out, f"{name}/{file.name}", file.read_bytes())

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Use in the body no more torch threads than its views are worth: bits depend on them."""
        count, _ = threads.for_torch(max(self.recipe.sizes(self._own_size)))
        if self.transform.device.type != "cpu" or count >= (all_ := torch.get_num_threads()):
            yield
            return
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(all_)

    @contextmanager
    def rng_state(self) -> Iterator[None]:
        """Use this student's states of torch's generators in the body."""
        device = self.transform.device
        checkpoint.restore(self._rng_state, device)
        try:
            yield
        finally:
            self._rng_state = checkpoint.generators(device)


@contextmanager
def open_logs(students: list[StudentTrainer]) -> Iterator[None]:
    """Keep the logs of students open in the body, which may remove students from the list."""
    try:
        for student in students:
            student.open()
        yield
    except BaseException as error:
        for student in students:
            student.close(error)
        raise
    for student in students:
        student.close()


_BROKEN = (
    "{} at epoch {}, step {}{}. Lower lr, set clip_grad, or use precision=fp32; the checkpoint "
    "before this is kept."
)
_WEIGHT = "a weight is NaN or Inf"
_RUNNING = ("running_mean", "running_var")
_TOP1 = {"top1": False, "top1_ema": True}
"""Name of an accuracy → True if it is the moving average's."""
