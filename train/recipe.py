"""What stage 2 is told: a TOML file becomes a `TrainRecipe`. Names are timm's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cache_tools import recipe
from cache_tools.spec import Precision

Mode = Literal["kd", "labels"]


@dataclass(frozen=True)
class TrainRecipe:
    """Everything about a run but for where cache, data and output lie."""

    student: str
    """timm name of the student."""
    epochs: int
    """Epochs; in each, every sample is seen `views_per_epoch` times."""
    mode: Mode = "kd"
    """"kd" learns from the stored targets, "labels" from the labels, on the same views."""
    batch_size: int = 256
    """Views per step; the last incomplete batch of an epoch is dropped."""
    views_per_epoch: int = 1
    """Views of each sample per epoch, m: epoch e sees views e·m … e·m + m - 1, modulo V."""
    repeats: int = 1
    """Repeated augmentation: an epoch shows 1/repeats of the samples, each in this many views."""
    temperature: float = 1.0
    """T of the soft targets; the loss carries T² (Hinton et al., 2015)."""
    distill_loss_weight: float = 1.0
    """Weight of KL(teacher ‖ student) in mode kd."""
    task_loss_weight: float = 0.0
    """Weight of cross-entropy with the labels in mode kd."""
    smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    opt: str = "adamw"
    """timm's name of the optimizer."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    weight_decay: float = 0.05
    """Weight decay; not applied to biases and normalisation (timm's rule)."""
    sched: str = "cosine"
    """timm's name of the schedule."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 = off."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0 = off."""
    precision: Precision = "fp32"
    """Autocast type."""
    compile: bool = False
    """Whether to compile the student (torch.compile)."""
    eval_crop: float = 0.875
    """Share of the shorter side that the centre crop of the evaluation takes."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written after every epoch and, in long ones, after this many minutes."""
    threads: int = 0
    """Renderer threads; 0 = one per core. Pixels do not depend on it."""
    seed: int = 0
    """Seed of the student's start and of the order of samples."""

    def __post_init__(self) -> None:
        positive = (self.epochs, self.batch_size, self.views_per_epoch, self.repeats)
        if min(positive) < 1:
            raise ValueError("epochs, batch_size, views_per_epoch, repeats must be positive.")
        if self.repeats > 1 and self.views_per_epoch > 1:
            raise ValueError("repeats and views_per_epoch cannot both be above 1.")
        if self.temperature <= 0 or self.lr <= 0:
            raise ValueError("temperature and lr must be positive.")
        if not 0 < self.eval_crop <= 1:
            raise ValueError("eval_crop must be in (0, 1].")
        if self.seed < 0 or self.threads < 0:
            raise ValueError("seed and threads cannot be negative.")


def build(mapping: Mapping[str, Any], where: str) -> TrainRecipe:
    """A recipe from the mapping that `dataclasses.asdict` makes of one; `where` names its file."""
    return recipe.build(TrainRecipe, mapping, where)


def load(name: str, overrides: Iterable[str] = ()) -> TrainRecipe:
    """Read a recipe by its name or path; `overrides` are key=value strings."""
    return recipe.load(TrainRecipe, name, "train", overrides)
