"""Parts of a training step, each timed alone on a batch already on the device.

Shapes: B views.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import Bench
from cache_tools.runtime import threads
from cache_tools.targets import codec
from cache_tools.views.draw import MixParams
from train.data import create_loader
from train.data.device_batch import InputTransform
from train.data.loader import Batch
from train.data.schedule import Schedule
from train.loss import losses
from train.loss.task import CachedDistillationTask
from train.trainer.factory import create_optimizer, create_student

FEW, MANY, ENOUGH = 3, 40, 1.0
"""Calls of a part, of which the median is taken: at least, at most, and the seconds between."""


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device) -> float:
    """The clock of the bars: CPU time for a CPU; else wall time when the device is idle."""
    wait(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


class Parts:
    """Parts of a step, each alone, on one batch already on the device."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        store, recipe = bench.inputs.store, bench.recipe
        schedule = Schedule(store, 1, recipe.batch_size, recipe.seed)
        replay = create_loader.native(store, bench.inputs.images, schedule, threads.cpu_count())
        self._batch: Batch = next(iter(replay.epoch(0)))
        torch.manual_seed(0)
        student = create_student(recipe, bench.inputs.num_classes).to(bench.device)
        if bench.device.type == "cuda":
            student = student.to(memory_format=torch.channels_last)
        config: Any = student.pretrained_cfg
        self._task = CachedDistillationTask(student, recipe, bench.device).train()
        of_labels = replace(recipe, mode="labels")
        self._of_labels = CachedDistillationTask(student, of_labels, bench.device).train()
        self._optimizer = create_optimizer(recipe, student)
        self._feed = InputTransform(
            bench.device, recipe.precision, tuple(config["mean"]), tuple(config["std"])
        )
        self._rows = np.random.default_rng(0).permutation(len(store.table))[: recipe.batch_size]
        self._stored = store.read_view(0)
        self._x, self._targets = self._feed.batch(self._batch)
        self._logits = torch.randn(recipe.batch_size, 1000, device=bench.device)

    def seconds(self) -> dict[str, float]:
        """Seconds per batch of each part: medians of calls."""
        store, batch = self._bench.inputs.store, self._bench.pair.batch
        student, labels = self._medians(self._step, lambda: self._step(self._of_labels))
        loss, cross_entropy = self._medians(self._kd, self._cross_entropy)
        decoding, reading = self._medians(self._look_up, lambda: store.read_view(0))
        return {
            "student": student,
            "labels": labels,
            "teacher": self._medians(self._ask)[0],
            "loss": loss,
            "cross-entropy": cross_entropy,
            "lookup": decoding + reading * batch / len(store.table),
        }

    def _medians(self, *calls: Callable[[], object]) -> list[float]:
        """Of each, the calls taking turns; the first ones are not counted."""
        device, begin = self._bench.device, time.perf_counter()
        times: list[list[float]] = [[] for _ in calls]
        for count in range(MANY + 1):
            if count > FEW and time.perf_counter() - begin > ENOUGH:
                break
            for call, own in zip(calls, times, strict=True):
                start = seconds(device)
                call()
                own.append(seconds(device) - start)
        return [statistics.median(own[1:]) for own in times]

    def _step(self, task: CachedDistillationTask | None = None) -> None:
        with self._feed.autocast():
            loss = (task or self._task)(self._x, self._targets)["loss"]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _ask(self) -> None:
        batch = self._batch
        mix = MixParams(np.arange(len(batch.lam_B)), batch.lam_B.astype(np.int32), batch.cut_B4)
        self._bench.ask(batch.pixels, batch.partner, mix, np.empty((len(batch.lam_B), 0), int))

    def _kd(self) -> None:
        logits = self._logits.clone().requires_grad_()
        losses.kd(logits, self._targets, self._bench.recipe.temperature).backward()

    def _cross_entropy(self) -> None:
        logits, targets = self._logits.clone().requires_grad_(), self._targets
        losses.cross_entropy(logits, targets.label, targets.partner_label, targets.lam).backward()

    def _look_up(self) -> None:
        spec = self._bench.inputs.store.spec.targets
        targets = codec.decode(self._stored, spec, self._rows)
        for array in (targets.index_BK, targets.probability_BK, targets.tail_BT):
            torch.from_numpy(array).to(self._bench.device)
