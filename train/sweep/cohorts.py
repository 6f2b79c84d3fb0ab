"""Grouping of students into cohorts: those of one stream of views, as many as the device fits.

Students of several sizes are in one cohort, too: its pictures are decoded once and rendered at each
of its sizes. Within a stream students are in the order of their sizes, so that a cohort that must
be divided has few of them.

A student's memory is measured by a step of its own. Its weights, moving average and optimizer state
stay on the device; activations and gradients are freed after its step, so that a cohort needs the
sum of the former and the maximum of the latter.

Shapes: B views of a batch, S pixels a side.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_tools.errors import UsageError
from cache_tools.runtime import host_memory
from train import backends
from train.data.device_batch import InputTransform
from train.recipe import STREAM, TrainRecipe
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
        """Inverse of `to_json`; other keys are left out."""
        return cls(**{f.name: facts[_KEYS.get(f.name, f.name)] for f in fields(cls)})


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
    of_one_size: Collection[str] = (),
) -> list[list[Student]]:
    """Group students into cohorts.

    Args:
        students: Students in the order of the grid.
        estimates: Memory of each, by name.
        budget: Bytes for a cohort.
        own: Pixels a side of the cache's views.
        max_students: Most students of a cohort; 0: as many as fit.
        of_one_size: Names of those whose loader makes views of one size at a time.

    Raises:
        UsageError: A student does not fit alone.
    """
    cohorts: list[list[Student]] = []
    for alike in _streams(students, of_one_size):
        limit = max_students or len(alike)
        cohort: list[Student] = []
        for student in sorted(alike, key=lambda one: one.recipe.sizes(own)):
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
            full = len(cohort) == limit or _compiled(larger) > _MOST_COMPILED
            if cohort and (full or _total_bytes(larger, estimates, own) > budget):
                cohorts.append(cohort)
                larger = [student]
            cohort = larger
        cohorts.append(cohort)
    return cohorts


def decoded_apart(students: Sequence[Student], own: int, of_one_size: Collection[str] = ()) -> str:
    """Return why students of several sizes do not all share their decode; "" where they do.

    Arguments as of `group`.
    """
    streams = _streams(students, of_one_size)
    sizes = [{size for one in alike for size in one.recipe.sizes(own)} for alike in streams]
    if all(some == sizes[0] for some in sizes):
        return ""
    firsts = [alike[0] for alike in streams]
    values = [
        {key: one.recipe.value(key) for key in (*STREAM, "compile")}
        | {"seed": one.recipe.seed_of_order, "tail=zero": one.recipe.tail == "zero"}
        | {"batch_size": one.recipe.batch_sizes}
        for one in firsts
    ]
    reasons = [f"{key} differs" for key in values[0] if len({of[key] for of in values}) > 1]
    if any(one.name in of_one_size for one in firsts):
        reasons.append("FFCV's loader makes views of one size")
    every = ", ".join(map(str, sorted(set().union(*sizes))))
    return f"students of {every} px do not all share the decode of a picture: " + ", ".join(reasons)


def sizes_of(cohort: Sequence[Student], own: int) -> list[int]:
    """List the pixels a side of a cohort's views, ascending; `own` as of `group`."""
    return sorted({size for student in cohort for size in student.recipe.sizes(own)})


def _streams(students: Sequence[Student], of_one_size: Collection[str]) -> list[list[Student]]:
    """Divide students into those that may form a cohort, each in the given order."""
    streams: dict[tuple[Any, ...], list[Student]] = {}
    for student in students:
        recipe = student.recipe
        phases = recipe.phases if student.name in of_one_size else ()
        key = recipe.stream, phases, recipe.tail == "zero", recipe.compile
        streams.setdefault(key, []).append(student)
    return [*streams.values()]


def _compiled(students: Sequence[Student]) -> int:
    """Count the networks and sizes that torch.compile keeps code for."""
    compiled = [student.recipe for student in students if student.recipe.compile]
    return sum(len({phase.size for phase in recipe.phases}) for recipe in compiled)


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
    return MEMORY_FRACTION * min(1024 * int(kilobytes), host_memory.limit())


def _total_bytes(
    students: Sequence[Student], estimates: dict[str, MemoryEstimate], own: int
) -> float:
    """Bytes of a cohort: all that is resident, the largest step, a batch and its copies.

    The batch is at each size that the students are shown at once.
    """
    each, recipes = [estimates[one.name] for one in students], [one.recipe for one in students]
    values = [0]
    for first in {phase.first for recipe in recipes for phase in recipe.phases}:
        shown = [recipe for recipe in recipes if first < recipe.epochs]
        pairs = {(one.size_at(first, own), one.phase_at(first).batch_size) for one in shown}
        values.append(sum(3 * size * size * batch_size for size, batch_size in pairs))
    batch = 4 * max(values) * 4
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
