"""Grouping of students into cohorts: those of one stream of views, as many as the device fits.

A student's memory is measured by a step of its own. Its weights, moving average and optimizer state
stay on the device; activations and gradients are freed after its step, so that a cohort needs the
sum of the former and the maximum of the latter.

Shapes: B views of a batch, S pixels a side.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_tools.errors import UsageError
from train import backends
from train.data.device_batch import InputTransform
from train.recipe import TrainRecipe
from train.sweep.grid import Student
from train.trainer.factory import create_optimizer, create_student

log = logging.getLogger("kdcache")
MEMORY_FRACTION = 0.85
"""Share of the free memory for a cohort: libraries need some, and estimates err."""
_MOST_COMPILED = 8
"""Networks for which torch.compile keeps the code of one function."""
_ON_CPU = 16
"""Views of the step measured on a CPU; its activations grow with their number."""
_TIMED = 5
_KEYS = {"activation_bytes": "passing"}
"""Keys of `need.json` that differ from the fields."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory and time of a student on a device."""

    parameters: int
    """Numbers in its weights."""
    resident: int
    """Bytes that stay: weights, moving average, optimizer state."""
    activation_bytes: int
    """Bytes that a step needs and frees: activations and gradients."""
    step_seconds: float
    """Seconds of a step on a batch already on the device."""
    images_per_second: float
    """Inference throughput of the network in such batches."""
    device: str
    """Name of the device of the measurement."""

    def to_json(self) -> dict[str, Any]:
        """Contents of `need.json`."""
        facts = asdict(self)
        return {_KEYS.get(name, name): value for name, value in facts.items()}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "MemoryEstimate":
        """Inverse of `to_json`."""
        names = {key: name for name, key in _KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in facts.items()})


def measure(
    recipe: TrainRecipe, num_classes: int, own: int, device: torch.device
) -> MemoryEstimate:
    """Measure a few of the largest steps of a student; `own` is the size of the cache's views."""
    size, batch_size = recipe.largest(own)
    backends.configure(device, recipe.deterministic)
    student = create_student(recipe, num_classes).to(device).train()
    optimizer = create_optimizer(recipe, student)
    count = batch_size if device.type == "cuda" else min(batch_size, _ON_CPU)
    config: dict[str, Any] = cast(Any, student).pretrained_cfg
    feed = InputTransform(device, recipe.precision, tuple(config["mean"]), tuple(config["std"]))
    x = feed.normalise(torch.zeros(count, 3, size, size, device=device))
    label_B = torch.zeros(count, dtype=torch.long, device=device)

    def step() -> None:
        with feed.autocast():
            logits = student(x)
        F.cross_entropy(logits.float(), label_B).backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        with feed.autocast():
            student(x)

    activations = _saved_bytes(step, student)
    seconds = _fastest_seconds(step, device)
    states = [s for of in optimizer.state.values() for s in of.values() if isinstance(s, Tensor)]
    with torch.inference_mode():
        student.eval()
        inference_seconds = _fastest_seconds(infer, device)
    weights = _bytes(student.state_dict().values())
    gradients = _bytes(p for p in student.parameters() if p.requires_grad)
    return MemoryEstimate(
        sum(p.numel() for p in student.parameters()),
        weights * (2 if recipe.model_ema_decay else 1) + _bytes(states),
        activations * batch_size // count + gradients,
        seconds * batch_size / count,
        round(count / inference_seconds, 1),
        device_name(device),
    )


def device_name(device: torch.device) -> str:
    """Name of a device in measurements."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def group(
    students: Sequence[Student],
    estimates: dict[str, MemoryEstimate],
    budget: float,
    own: int,
    max_students: int = 0,
) -> list[list[Student]]:
    """Group students into cohorts in the order of the grid.

    Students in groups within a `budget` in bytes; `max_students` of 0: as many as fit.

    Raises:
        UsageError: A student does not fit alone.
    """
    streams: dict[tuple[Any, ...], list[Student]] = {}
    for student in students:
        key = student.recipe.stream, student.recipe.tail == "zero", student.recipe.compile
        streams.setdefault(key, []).append(student)
    cohorts: list[list[Student]] = []
    for alike in streams.values():
        limit = max_students or len(alike)
        if alike[0].recipe.compile:
            sizes = len({phase.size for phase in alike[0].recipe.phases})
            limit = min(limit, max(1, _MOST_COMPILED // sizes))
        cohort: list[Student] = []
        for student in alike:
            if (alone := _total_bytes([student], estimates, own)) > budget:
                needed = estimates[student.name]
                raise UsageError(
                    f"the device is too small for {student.name}: it needs {alone / 1e9:.2f} GB "
                    f"({needed.resident / 1e9:.2f} of weights and optimizer, "
                    f"{needed.activation_bytes / 1e9:.2f} of a step of "
                    f"{student.recipe.largest(own)[1]} views), and {budget / 1e9:.2f} are "
                    "available. Lower batch_size and raise grad_accum_steps, or take it out of the "
                    "grid."
                )
            larger = [*cohort, student]
            if cohort and (len(cohort) == limit or _total_bytes(larger, estimates, own) > budget):
                cohorts.append(cohort)
                larger = [student]
            cohort = larger
        cohorts.append(cohort)
    return cohorts


def budget(device: torch.device, gigabytes: float = 0.0) -> float:
    """Bytes for a cohort: `gigabytes` if set, else a share of the memory that is free now."""
    if gigabytes:
        return gigabytes * 1e9
    if device.type == "cuda":
        return MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")  # not Linux: free memory is unknown
    return MEMORY_FRACTION * 1024 * int(kilobytes)


def _total_bytes(
    students: Sequence[Student], estimates: dict[str, MemoryEstimate], own: int
) -> float:
    """Bytes of a cohort: all that is resident, the largest step, a batch and its copies."""
    each, recipe = [estimates[student.name] for student in students], students[0].recipe
    size, batch_size = recipe.largest(own)
    batch = 4 * 3 * size * size * batch_size * 4
    return sum(e.resident for e in each) + max(e.activation_bytes for e in each) + batch


def _saved_bytes(step: Callable[[], None], student: nn.Module) -> int:
    """Bytes that a step saves for its backward pass, weights not counted."""
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


def _fastest_seconds(work: Callable[[], None], device: torch.device) -> float:
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
