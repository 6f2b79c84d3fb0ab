"""Recipe of stage 1: a TOML file becomes a `CacheRecipe`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cache_tools import config
from cache_tools.config import Range
from cache_tools.errors import UsageError
from cache_tools.runtime import arguments
from cache_tools.spec.dataset import MAX_SAMPLES, SplitName
from cache_tools.spec.targets import MAX_KEPT, TargetSpec
from cache_tools.spec.teacher import MAX_CLASSES, Precision
from cache_tools.spec.views import ViewSpec

MemoryFormat = Literal["auto", "channels_last", "contiguous"]
Order = Literal["blocks", "views"]


@dataclass(frozen=True)
class DatasetRecipe:
    """Facts about the data set before it is opened."""

    num_samples: Annotated[int, Range(0, MAX_SAMPLES)] = 0
    """Number of samples to plan with when there is no data set at hand."""
    num_classes: Annotated[int, Range(0, MAX_CLASSES)] = 0
    """Number of classes of the labels; 0 = that of the data set."""
    split: SplitName = "train"
    """Split of the data set for the teacher. Later commands find it by its samples."""
    labels: Literal["use", "ignore", "auto"] = "use"
    """Use of the labels: "use" stores them, and their classes must be the teacher's; "auto" stores
    them where the class folders are synsets that the teacher predicts. The log has the choice."""

    def __post_init__(self) -> None:
        config.check_ranges(self)


@dataclass(frozen=True)
class TeacherSource:
    """Source of one teacher: a table `[[teachers]]` of a recipe of stage 1.

    Each field is a recipe key: docs/reference/keys.md has type, default, range and text of each.
    """

    name: str
    """timm name, "hf-hub:…", a folder as saved by timm, a file of weights, or the name of a network
    of another library: torchvision:NAME:WEIGHTS, transformers:NAME, python:MODULE:FUNCTION."""
    weight: Annotated[float, Range(0, 1e9, "least")] = 1.0
    """Its share in the mean of probabilities of several; only ratios count."""
    architecture: str = ""
    """Name of the network in a file; its tag decides mean and deviation."""
    class_map: str = ""
    """File that maps its classes to those of the data set."""

    def __post_init__(self) -> None:
        config.check_ranges(self)


@dataclass(frozen=True)
class CacheRecipe:
    """All settings of stage 1 except the paths of data, teacher and cache.

    Each field is a recipe key: docs/reference/keys.md has type, default, range and text of each.
    """

    views: ViewSpec
    """Augmentation of the views."""
    num_views: Annotated[int, Range(1, 10_000)]
    """Views per sample, V."""
    targets: TargetSpec = field(default_factory=TargetSpec)
    """Classes and temperatures kept of the teacher's predictions."""
    dataset: DatasetRecipe = DatasetRecipe()
    """Facts about the data set."""
    teacher: str = ""
    """Name of the teacher, as in `TeacherSource`; --teacher overrides it."""
    teachers: tuple[TeacherSource, ...] = ()
    """One teacher or several, whose mean of probabilities is stored; overrides `teacher`."""
    precision: Precision = "fp32"
    """Autocast type of the teacher's forward pass."""
    memory_format: MemoryFormat = "auto"
    """Order of the pixels in memory; the log has the choice of "auto" and its reason."""
    compile: bool = False
    """Use of torch.compile for the teacher: a few minutes at the start, faster afterwards."""
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    """Views per forward pass of the teacher."""
    views_per_decode: Annotated[int, Range(1, 10_000)] = 4
    """Views rendered from one decoded image; costs 2 × this × 1,024 views of memory."""
    order: Order = "blocks"
    """Order of the decode groups: "blocks" makes all views of a block before the next block;
    "views" the first `views_per_decode` views of all blocks before further ones, for students that
    follow the cache (`follow` of stage 2). The bytes are the same."""
    block_size: Annotated[int, Range(1, 2**20)] = 65_536
    """Samples per part."""
    expected_kept: Annotated[float, Range(0, MAX_KEPT)] = 0.0
    """Classes kept per view to plan with; 0 = k_max."""

    def __post_init__(self) -> None:
        config.check_ranges(self)

    @property
    def sources(self) -> tuple[TeacherSource, ...]:
        """Teachers of the recipe."""
        return self.teachers or ((TeacherSource(self.teacher),) if self.teacher else ())

    def targets_of(self, num_classes: int) -> TargetSpec:
        """Targets for a teacher of `num_classes` classes: top-k is at most that."""
        k_max, k_min = (min(k, num_classes) for k in (self.targets.k_max, self.targets.k_min))
        return replace(self.targets, k_max=k_max, k_min=k_min)


def load(
    recipe: str | Path | Mapping[str, Any] | CacheRecipe,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> CacheRecipe:
    """Read a recipe by its name or path, or of a dict; arguments as of `config.load`."""
    return config.load(CacheRecipe, recipe, "pipeline", overrides, values or {})


def sources(
    recipe: CacheRecipe,
    names: Sequence[str] = (),
    weights: Sequence[float] = (),
    architectures: Sequence[str] = (),
    class_maps: Sequence[str] = (),
) -> tuple[TeacherSource, ...]:
    """Teachers of a recipe, or of the command line, with the options of the command line.

    Args:
        recipe: Recipe with the teachers used when no names are given.
        names: Teachers instead of the recipe's.
        weights: A weight for each, or none.
        architectures: An architecture for each, or one for all; "" is none.
        class_maps: A class map for each, or one for all; "" is none.

    Raises:
        UsageError: No teacher is named, or the numbers do not agree.
    """
    found = tuple(map(TeacherSource, names)) or recipe.sources
    if not found:
        raise UsageError(
            "no teacher is named. Pass --teacher with a timm name, a folder or a file."
        )
    weights = arguments.listed("weights", weights, "one for each teacher")
    if weights and len(weights) != len(found):
        raise UsageError(
            f"there are {len(found)} teachers and {len(weights)} weights. Give each teacher one, "
            "in the same order, or none at all."
        )
    for key, values in (("architecture", architectures), ("class_map", class_maps)):
        found = _each(found, key, values)
    try:
        return _each(found, "weight", weights)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _each(
    found: tuple[TeacherSource, ...], field: str, values: Sequence[str | float]
) -> tuple[TeacherSource, ...]:
    """Set a field of the sources: to a value for each, or to one for all."""
    if not values:
        return found
    if len(values) == 1:
        values = list(values) * len(found)
    if len(values) != len(found):
        option = f"--{field.replace('_', '-')}"
        raise UsageError(
            f"there are {len(found)} teachers and {option} is given {len(values)} times. "
            "Give one for all, or one for each in the same order ('' for none)."
        )
    pairs = zip(found, values, strict=True)
    return tuple(replace(source, **{field: value}) for source, value in pairs)  # type: ignore[arg-type]
