"""What stage 1 is told: a TOML file becomes a `CacheRecipe`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cache_tools import recipe
from cache_tools.spec import Precision, TargetSpec, ViewSpec


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
    precision: Precision = "fp32"
    """Autocast type of the teacher's forward pass."""
    batch_size: int = 256
    """Views per forward pass of the teacher."""
    views_per_decode: int = 4
    """Views rendered from one decoded image; costs this × 1,024 views of memory."""
    block_size: int = 65_536
    """Samples per part."""
    expected_kept: float = 0.0
    """Classes kept per view to plan with; 0 = k_max."""

    def __post_init__(self) -> None:
        if self.num_views < 1 or self.num_views > 10_000:
            raise ValueError("num_views must be in 1..10000.")
        if self.batch_size < 1 or self.views_per_decode < 1:
            raise ValueError("batch_size and views_per_decode must be positive.")


def load(name: str, overrides: Iterable[str] = ()) -> CacheRecipe:
    """Read a recipe by its name or path; `overrides` are key=value strings."""
    return recipe.load(CacheRecipe, name, "pipeline", overrides)
