"""Which students train together: those of one stream of views, as many as the device holds.

What a student takes is measured by a step of its own. Its weights, moving average and optimizer
state stay on the device; activations and gradients go with its turn, so that a cohort needs the sum
of what stays and the largest of what goes.

Shapes: B views of a batch, S pixels a side.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_tools.errors import UsageError
from train.data.device_batch import Input
from train.recipe import TrainRecipe
from train.sweep.grid import Student
from train.trainer.factory import create_optimizer, create_student

log = logging.getLogger("kdcache")
SHARE = 0.85
"""Of the free memory, what a cohort may take: libraries want some, and estimates err."""
_MOST_COMPILED = 8
"""Networks for which torch.compile keeps the code of one function."""
_ON_CPU = 16
"""Views of the step that is measured on a CPU; its activations grow with their number."""
_TIMED = 5


@dataclass(frozen=True)
class Need:
    """What a student takes of its device."""

    parameters: int
    """Numbers in its weights."""
    resident: int
    """Bytes that stay: weights, moving average, optimizer state."""
    passing: int
    """Bytes of its turn: activations and gradients."""
    step_seconds: float
    """Seconds of a step alone on a batch that lies ready."""
    images_per_second: float
    """Pictures that the trained network answers per second, in such batches."""
    device: str
    """What it was measured on."""


def measure(recipe: TrainRecipe, num_classes: int, size: int, device: torch.device) -> Need:
    """A few steps of a student on random pictures of `size` pixels."""
    student = create_student(recipe, num_classes).to(device).train()
    optimizer = create_optimizer(recipe, student)
    count = recipe.batch_size if device.type == "cuda" else min(recipe.batch_size, _ON_CPU)
    config: dict[str, Any] = cast(Any, student).pretrained_cfg
    feed = Input(device, recipe.precision, tuple(config["mean"]), tuple(config["std"]))
    x = feed.normalise(torch.zeros(count, 3, size, size, device=device))
    label_B = torch.zeros(count, dtype=torch.long, device=device)

    def step() -> None:
        with feed.autocast():
            logits = student(x)
        F.cross_entropy(logits.float(), label_B).backward()
        optimizer.step()
        optimizer.zero_grad()

    activations = _saved(step, student)
    seconds = _fastest(step, device)
    states = [s for of in optimizer.state.values() for s in of.values() if isinstance(s, Tensor)]
    with torch.inference_mode():
        student.eval()
        answer = _fastest(lambda: _ask(student, x, feed), device)
    weights = _bytes(student.state_dict().values())
    gradients = _bytes(p for p in student.parameters() if p.requires_grad)
    return Need(
        sum(p.numel() for p in student.parameters()),
        weights * (2 if recipe.ema_decay else 1) + _bytes(states),
        activations * recipe.batch_size // count + gradients,
        seconds * recipe.batch_size / count,
        round(count / answer, 1),
        name_of(device),
    )


def name_of(device: torch.device) -> str:
    """What measurements name a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def group(
    students: Sequence[Student], needs: dict[str, Need], budget: float, size: int, most: int = 0
) -> list[list[Student]]:
    """Cohorts of students in the order of the grid.

    Args:
        students: Whom to train.
        needs: What each takes, by name.
        budget: Bytes of the device that a cohort may take.
        size: S.
        most: Most students of a cohort; 0 = as many as fit.

    Raises:
        UsageError: A student does not fit alone.
    """
    streams: dict[tuple[Any, ...], list[Student]] = {}
    for student in students:
        key = student.recipe.stream, student.recipe.tail == "zero", student.recipe.compile
        streams.setdefault(key, []).append(student)
    cohorts: list[list[Student]] = []
    for alike in streams.values():
        room = most or len(alike)
        if alike[0].recipe.compile:
            room = min(room, _MOST_COMPILED)
        now: list[Student] = []
        for student in alike:
            if _total([student], needs, size) > budget:
                raise _too_small(student, needs[student.name], budget, size)
            if now and (len(now) == room or _total([*now, student], needs, size) > budget):
                cohorts.append(now)
                now = []
            now = [*now, student]
        cohorts.append(now)
    return cohorts


def budget(device: torch.device, gigabytes: float = 0.0) -> float:
    """Bytes that a cohort may take: as told, or of what is free now."""
    if gigabytes:
        return gigabytes * 1e9
    if device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")  # not Linux: nobody tells
    return SHARE * 1024 * int(kilobytes)


def _total(students: Sequence[Student], needs: dict[str, Need], size: int) -> float:
    """Bytes of a cohort: what stays of each, the largest turn, a batch and what is made of it."""
    own = [needs[student.name] for student in students]
    batch = 4 * 3 * size * size * students[0].recipe.batch_size * 4
    return sum(need.resident for need in own) + max(need.passing for need in own) + batch


def _too_small(student: Student, need: Need, budget: float, size: int) -> UsageError:
    wanted = _total([student], {student.name: need}, size)
    return UsageError(
        f"the device is too small for {student.name}: it wants {wanted / 1e9:.2f} GB "
        f"({need.resident / 1e9:.2f} of weights and optimizer, {need.passing / 1e9:.2f} of a step "
        f"of {student.recipe.batch_size} views), and {budget / 1e9:.2f} may be taken. Lower "
        "batch_size and raise accumulate, or take it out of the grid."
    )


def _saved(step: Callable[[], None], student: nn.Module) -> int:
    """Bytes that a step keeps for its backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _ask(student: nn.Module, x: Tensor, feed: Input) -> None:
    with feed.autocast():
        student(x)


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few calls: other programs only ever slow one down."""
    seconds = []
    for _ in range(_TIMED):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
