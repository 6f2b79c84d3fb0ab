"""What stage 1 is told: a TOML file becomes a `CacheRecipe`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cache_tools import config
from cache_tools.errors import UsageError
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import Precision
from cache_tools.spec.views import ViewSpec

MemoryFormat = Literal["auto", "channels_last", "contiguous"]


@dataclass(frozen=True)
class DatasetRecipe:
    """What is known of the data set before it is opened."""

    num_samples: int = 0
    """Number of samples to plan with when there is no data set at hand."""
    num_classes: int = 0
    """Number of classes the labels speak of; 0 = as found in the data set."""
    split: str = "train"
    """Which split of the data set is seen by the teacher."""
    labels: Literal["use", "ignore"] = "use"
    """Whether the labels are of the teacher's classes and go into the cache."""


@dataclass(frozen=True)
class TeacherSource:
    """Where one teacher comes from."""

    name: str
    """timm name, "hf-hub:…", a folder as timm saves networks, or a file of weights."""
    weight: float = 1.0
    """Its share in the mean of probabilities of several; only ratios count."""
    architecture: str = ""
    """timm's name of the network in a file, whose tag decides mean and deviation."""
    class_map: str = ""
    """File that says of which of its classes those of the data set are made."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight {self.weight} of a teacher cannot be: it is positive.")


@dataclass(frozen=True)
class CacheRecipe:
    """Everything stage 1 does, but for where the data, the teacher and the cache lie."""

    views: ViewSpec
    """The augmentation."""
    targets: TargetSpec
    """What is kept of the teacher's words."""
    num_views: int
    """Views per sample, V."""
    dataset: DatasetRecipe = DatasetRecipe()
    """What is known of the data set."""
    teacher: str = ""
    """timm name of the teacher; --teacher wins."""
    teachers: tuple[TeacherSource, ...] = ()
    """One teacher or several, of which the mean of probabilities is stored; instead of `teacher`,
    and wins over it."""
    precision: Precision = "fp32"
    """Autocast type of the teacher's forward pass."""
    memory_format: MemoryFormat = "auto"
    """Order of the pixels in memory; the log says what "auto" chose and why."""
    compile: bool = False
    """Whether torch.compile makes the teacher's kernels: a few minutes first, faster afterwards."""
    batch_size: int = 256
    """Views per forward pass of the teacher."""
    views_per_decode: int = 4
    """Views rendered from one decoded image; costs 2 × this × 1,024 views of memory."""
    block_size: int = 65_536
    """Samples per part."""
    expected_kept: float = 0.0
    """Classes kept per view to plan with; 0 = k_max."""

    def __post_init__(self) -> None:
        if self.num_views < 1 or self.num_views > 10_000:
            raise ValueError("num_views must be in 1..10000.")
        if self.batch_size < 1 or self.views_per_decode < 1:
            raise ValueError("batch_size and views_per_decode must be positive.")

    @property
    def sources(self) -> tuple[TeacherSource, ...]:
        """The teachers it names."""
        return self.teachers or ((TeacherSource(self.teacher),) if self.teacher else ())

    def targets_of(self, num_classes: int) -> TargetSpec:
        """What is kept of a teacher of so many classes: no more than there are."""
        k_max, k_min = (min(k, num_classes) for k in (self.targets.k_max, self.targets.k_min))
        return replace(self.targets, k_max=k_max, k_min=k_min)


def load(name: str, overrides: Iterable[str] = ()) -> CacheRecipe:
    """Read a recipe by its name or path; `overrides` are key=value strings."""
    return config.load(CacheRecipe, name, "pipeline", overrides)


def sources(
    recipe: CacheRecipe,
    names: Sequence[str] = (),
    weights: Sequence[float] = (),
    architectures: Sequence[str] = (),
    class_maps: Sequence[str] = (),
) -> tuple[TeacherSource, ...]:
    """The teachers of a recipe, or those of the command line, with what that says of them.

    Args:
        recipe: Whose teachers speak when no names are given.
        names: Teachers instead of them.
        weights: A weight for each, or none.
        architectures: An architecture for each, or one for all; "" is none.
        class_maps: A class map for each, or one for all; "" is none.

    Raises:
        UsageError: Nobody names a teacher, or the numbers do not agree.
    """
    found = tuple(map(TeacherSource, names)) or recipe.sources
    if not found:
        raise UsageError("which teacher? Pass --teacher with a timm name, a folder or a file.")
    if weights and len(weights) != len(found):
        raise UsageError(
            f"there are {len(found)} teachers and {len(weights)} weights. Give each teacher one, "
            "in the same order, or none at all."
        )
    for field, values in (("architecture", architectures), ("class_map", class_maps)):
        found = _each(found, field, values)
    try:
        return _each(found, "weight", weights)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _each(
    found: tuple[TeacherSource, ...], field: str, values: Sequence[str | float]
) -> tuple[TeacherSource, ...]:
    """The sources with a field set: to a value for each, or to one for all."""
    if not values:
        return found
    if len(values) == 1:
        values = list(values) * len(found)
    if len(values) != len(found):
        raise UsageError(
            f"there are {len(found)} teachers and --{field.replace('_', '-')} stands {len(values)} "
            "times. Give one for all, or one for each in the same order ('' for none)."
        )
    pairs = zip(found, values, strict=True)
    return tuple(replace(source, **{field: value}) for source, value in pairs)  # type: ignore[arg-type]
