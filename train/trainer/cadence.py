"""Cadence of a run: steps at which losses are checked, rows logged and checkpoints written.

Rows belong to fixed steps, so that a killed run has the rows of an undisturbed one. Checkpoints and
stops depend on the clock and on signals; several processes decide them together and at these fixed
steps only, one process alone after any update.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cache_tools.runtime.signals import StopRequest
from train.distributed import World
from train.recipe import TrainRecipe
from train.trainer.student import StudentTrainer

LOG_STEPS = 32
"""Steps after which losses are checked and a row is logged."""


@dataclass(frozen=True)
class Due:
    """Work that is due after a step, beside the check of the losses."""

    log: bool
    """Log a row."""
    save: bool
    """Write a checkpoint."""
    stop: bool
    """End the training; a signal came."""


class Cadence:
    """Decisions after each step of an epoch."""

    def __init__(self, recipe: TrainRecipe, world: World, signals: StopRequest) -> None:
        """Plan the epochs of a run."""
        accum = recipe.grad_accum_steps
        self._log_stride = accum * math.ceil(LOG_STEPS / accum)
        self._seconds = 60 * recipe.checkpoint_minutes
        self._world, self._signals = world, signals

    def start_epoch(self, steps: int) -> None:
        """Begin an epoch of `steps` steps; the minutes to the next checkpoint count from now on."""
        self._steps = steps
        self._saved = time.monotonic()

    def after(self, step: int, updated: bool) -> Due | None:
        """Decide what is due after `step` steps of the epoch; `updated` if the last one updated."""
        now = time.monotonic()
        late = now - self._saved > self._seconds
        alone = self._world.size == 1 and (self._signals.requested or late)
        log = step == self._steps or step % self._log_stride == 0
        if not (log or (updated and alone)):
            return None
        stop, late = self._world.any(self._signals.requested), self._world.any(late)
        self._saved = now if late else self._saved
        return Due(log, stop or late, stop)


class StepTimer:
    """Wall time of steps, divided among the students of a cohort."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def batch_ready(self) -> None:
        """Note that the wait for the batch is over."""
        self._waited = time.monotonic() - self._begin

    def end_step(self, students: Sequence[StudentTrainer]) -> None:
        """Record the time since the last step: of each its own, and an even part of the rest."""
        now = time.monotonic()
        seconds = now - self._begin
        rest = (seconds - sum(one.busy for one in students)) / max(len(students), 1)
        for student in students:
            student.record_time(seconds, self._waited, rest)
        self._begin = now
