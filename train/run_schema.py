"""Schemas of the JSON files of runs and sweeps, by which they are checked when they are read.

Keys that are not listed here pass unchecked: a later kdcache may add some.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cache_tools import config
from cache_tools.config import Range
from cache_tools.errors import RecipeError, UsageError
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from train.recipe import Mode, TrainRecipe

_Count = Annotated[int, Range(0, 2**62)]
_Pixels = Annotated[int, Range(1, 4096)]


@dataclass(frozen=True)
class _Checked:
    def __post_init__(self) -> None:
        config.check_ranges(self)


@dataclass(frozen=True)
class _Begun(_Checked):
    """RUN/config.json as the first kdcache wrote it, which named no teacher."""

    recipe: TrainRecipe
    num_views: _Count
    view_size: _Pixels


@dataclass(frozen=True)
class _Config(_Begun):
    """RUN/config.json."""

    samples: _Count
    validation_images: _Count
    teacher: TeacherSpec
    views: ViewSpec
    eval_size: _Pixels = 1
    layout: _Count = 1
    coverage: dict | None = None  # type: ignore[type-arg]
    weights: dict | None = None  # type: ignore[type-arg]


@dataclass(frozen=True)
class _Network:
    """RUN/model/config.json, and that of an export."""

    model_args: dict | None = None  # type: ignore[type-arg]
    num_classes: int | None = None


@dataclass(frozen=True)
class _Result(_Checked):
    """RUN/result.json."""

    student: str
    mode: Mode
    top1: float | None
    top1_ema: float | None
    top1_best: float | None
    loss: float
    cache_fingerprint: str
    seconds: float
    images_per_second: float = 0.0
    data_wait: float = 0.0
    images: _Count = 0
    parameters: _Count = 0
    cost_seconds: float = 0.0


@dataclass(frozen=True)
class _Need(_Checked):
    """RUN/need.json: `train.sweep.cohorts.MemoryEstimate`."""

    parameters: _Count
    images_per_second: float
    resident: _Count
    passing: _Count
    step_seconds: float
    device: str
    measured: dict | None = None  # type: ignore[type-arg]


@dataclass(frozen=True)
class _Arm:
    top1: tuple[float, ...]
    mean: float
    deviation: float


@dataclass(frozen=True)
class _Gain:
    each: tuple[float, ...]
    mean: float
    standard_error: float


@dataclass(frozen=True)
class _Comparison:
    """comparison.json of `kdcache train --against labels`."""

    seeds: tuple[int, ...]
    kd: _Arm
    labels: _Arm
    gain: _Gain
    student: str
    teacher: str
    transfer_images: int


@dataclass(frozen=True)
class _Forwards:
    cache: float
    online: float
    online_cohorts: float = 0.0


@dataclass(frozen=True)
class _ImageNet:
    images: int
    views: int
    views_shown: int
    forwards: _Forwards
    teacher_hours: _Forwards | None = None


@dataclass(frozen=True)
class _Timed:
    seconds_per_view: float
    device: str


@dataclass(frozen=True)
class _Ledger:
    """`train.sweep.cost.sweep_cost`."""

    students: int
    forwards: _Forwards
    student_hours: float
    imagenet: _ImageNet
    teacher: _Timed | None = None
    hours: _Forwards | None = None


@dataclass(frozen=True)
class _Sweep:
    """SWEEP/sweep.json."""

    swept: tuple[str, ...] = ()
    ledger: _Ledger | None = None


_BY_NAME: dict[str, type] = {
    "result.json": _Result,
    "need.json": _Need,
    "comparison.json": _Comparison,
    "sweep.json": _Sweep,
}
_WORDS: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "cache": (str, list),
    "class_names": (list,),
}
"""Keys of a run's config.json whose words, or lists of words, may have any characters."""


def check(path: Path, value: Any) -> None:
    """Check the content of a JSON file of a run or a sweep.

    Raises:
        UsageError: It lacks a key, or a value is of another type or out of its range.
    """
    found, of_run = "", isinstance(value, dict) and "recipe" in value
    if not isinstance(value, dict):
        found = f"it is no table but {type(value).__name__}"
    elif path.name == "config.json" and of_run:
        found = _fault(_Config if "teacher" in value else _Begun, value) or _words_fault(value)
    elif kind := _BY_NAME.get(path.name, _Network if path.name == "config.json" else None):
        found = _fault(kind, value)
    if found:
        raise UsageError(
            f"{path} is no file that kdcache writes to a run: {found}. Restore it from a copy, or "
            "make the run again with --fresh."
        )


def _fault(kind: type, value: dict[str, Any]) -> str:
    try:
        config.build(kind, _listed(kind, value), "")
    except RecipeError as error:
        return str(error).removeprefix(": ").rstrip(".")
    return ""


def _words_fault(value: dict[str, Any]) -> str:
    for key, types in _WORDS.items():
        if key not in value and "teacher" in value:
            return f"it lacks {key}"
        found = value.get(key, types[0]())
        each = found if isinstance(found, list) else [found]
        if not isinstance(found, types) or not all(isinstance(one, str) for one in each):
            return f"its {key} is {found!r:.100}"
    return ""


def _listed(kind: Any, value: Any) -> Any:
    """Leave out keys that `kind` does not have, in its tables, too."""
    tables = [one for one in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(one)]
    if not tables or not isinstance(value, Mapping):
        return value
    hints = typing.get_type_hints(tables[0])
    value = config.canonical(value, getattr(tables[0], "ALIASES", {}), "")
    names = [field.name for field in dataclasses.fields(tables[0])]
    return {name: _listed(hints[name], value[name]) for name in names if name in value}
