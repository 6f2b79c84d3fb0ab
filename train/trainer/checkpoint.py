"""Checkpoint of a run: all that it needs to resume as if it had never stopped, in one file.

The file is written atomically. It holds the student, its moving average, the optimizer, torch's
generators and the progress of the run. It is read with `weights_only`: tensors and plain values,
never code.
"""

import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch.optim import Optimizer

from cache_tools.errors import CacheDamaged
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.storage import atomic, seal
from train.distributed import ALONE, World
from train.loss.task import CachedDistillationTask

log = logging.getLogger("kdcache")
NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"


@dataclass
class Progress:
    """Epochs and steps of a run that are done, and sums over them."""

    epoch: int = 0
    """Epoch in hand, from 0."""
    step: int = 0
    """Steps of it that are done."""
    seconds: float = 0.0
    """Time spent in training so far."""
    wait: float = 0.0
    """Of it, time spent waiting for data."""
    cost: float = 0.0
    """Of `seconds`, those that are this student's: its own steps, and an even part of the rest."""
    loss_sum: float = 0.0
    """Sum of the losses of the epoch in hand."""
    terms: dict[str, list[float]] = field(default_factory=dict)
    """Sum and count of each term of the loss since the last row of `train.trainer.log`."""
    mark: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """`seconds` and `wait` at that row."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of metrics per finished epoch."""
    best: float = -1.0
    """Highest top-1 accuracy so far, of the student or its average; its weights are kept."""


def save(
    folder: Path,
    task: CachedDistillationTask,
    optimizer: Optimizer,
    scaler: Any,
    progress: Progress,
    world: World = ALONE,
) -> None:
    """Write the checkpoint of a run atomically; the one before is kept beside it."""
    states = world.all(generators(task.device))
    if not world.is_main:
        return
    ema = task.get_trainable_module(ema=True)
    state = {
        "model": unwrap_model(task.trainable_module).state_dict(),
        "ema": ema.state_dict() if ema is not None else None,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "generators": states,
        "place": vars(progress),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    seal.add(folder, NAME, buffer.getvalue())
    if (folder / NAME).exists():
        (folder / NAME).replace(folder / PREVIOUS)
    atomic.write(folder / NAME, buffer.getvalue())


def remove(folder: Path) -> None:
    """Remove the checkpoints of a finished run."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def load(
    folder: Path,
    task: CachedDistillationTask,
    optimizer: Optimizer,
    scaler: Any,
    world: World = ALONE,
) -> Progress | None:
    """Restore the last readable checkpoint of a run; None when there is none.

    Raises:
        CacheDamaged: There is one, and neither it nor the one before can be read; or it is of
            another recipe.
    """
    state = _read(folder)
    if state is None:
        return None
    try:
        return _restore(state, task, optimizer, scaler, world)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise  # of the device, such as its memory
        reason = str(error).partition("\n")[0][:200]
        raise CacheDamaged(
            f"the checkpoint of {folder} is not of this run ({type(error).__name__}: {reason}). "
            "Restore it from a copy, or pass --fresh to start the run anew."
        ) from None


def _restore(
    state: dict[str, Any],
    task: CachedDistillationTask,
    optimizer: Optimizer,
    scaler: Any,
    world: World,
) -> Progress:
    unwrap_model(task.trainable_module).load_state_dict(state["model"])
    if (ema := task.get_trainable_module(ema=True)) is not None:
        ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    if len(state["generators"]) == world.size:
        restore(state["generators"][world.rank], task.device)
    else:
        log.info("another number of processes: dropout goes on from other random numbers")
    return Progress(**state["place"])


def generators(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators of the CPU and, on a GPU, of the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore(states: list[torch.Tensor], device: torch.device) -> None:
    """Put back what `generators` returned."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


def _read(folder: Path) -> dict[str, Any] | None:
    """Read to the host: on a GPU the state would be there twice, and counters waited for there."""
    there = [folder / name for name in (NAME, PREVIOUS) if (folder / name).is_file()]
    for path in there:
        try:
            seal.check(folder, path.name, stored_as=NAME)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # torch raises many kinds for a broken file
            if is_out_of_memory(error):
                raise
            why = error if isinstance(error, CacheDamaged) else type(error).__name__
            log.warning("the checkpoint %s cannot be read (%s)", path, why)
    if there:
        raise CacheDamaged(
            f"the checkpoint {there[0]} cannot be read, and none before it. Pass --fresh to start "
            "the run anew."
        )
    return None
