"""Recipe of stage 2: a TOML file becomes a `TrainRecipe`. Names are timm's.

Every value that decides a student's weights is a field here, so that the recipe saved with a run
reproduces it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cache_tools import config
from cache_tools.spec.teacher import Precision

Mode = Literal["kd", "labels", "online"]
_STREAM = (
    "batch_size",
    "grad_accum_steps",
    "views_per_epoch",
    "aug_repeats",
    "num_views",
    "view_order",
    "loader",
    "threads",
    "checkpoint_minutes",
    "deterministic",
)


@dataclass(frozen=True)
class TrainRecipe:
    """Everything about a run except the paths of cache, data and output."""

    ALIASES: ClassVar[dict[str, str]] = {
        "kept": "top_k",
        "repeats": "aug_repeats",
        "accumulate": "grad_accum_steps",
        "eval_crop": "crop_pct",
        "ema_decay": "model_ema_decay",
    }
    """Former names of keys, which recipes, overrides and saved configs may still have."""
    student: str
    """timm name of the student."""
    epochs: int
    """Epochs; in each, every sample is shown `views_per_epoch` times."""
    cache_recipe: str = ""
    """Recipe of stage 1 that makes its cache; "" = the recipe of the same name."""
    min_views: int = 0
    """Fewest views of a sample that the cache must have for this schedule; 0 = any number."""
    init: str = ""
    """Initial weights of the student: a timm name with its tag, "hf-hub:user/model",
    "local-dir:FOLDER" as timm and `kdcache train` save networks, or a safetensors file; "" =
    random. A head of another number of classes starts at random."""
    mode: Mode = "kd"
    """"kd" learns from the stored targets, "labels" from the labels, "online" from the teacher in
    the loop, all on the same views."""
    batch_size: int = 256
    """Views per step; the last incomplete batch of an epoch is dropped."""
    views_per_epoch: int = 1
    """Views of each sample per epoch, m: epoch e shows views e·m … e·m + m - 1, modulo V."""
    aug_repeats: int = 1
    """Repeated augmentation r: an epoch shows one r-th of the samples, each in r views of the same
    update, in different processes and steps of it as far as there are several."""
    num_views: int = 0
    """Views of the cache that are shown, from the first one on; 0 = all."""
    view_order: Literal["cycle", "shuffle"] = "cycle"
    """"cycle" shows the views of the cache in their order and then again; "shuffle" draws the order
    anew each time all have been shown."""
    loss: Literal["kd", "bkd", "dkd", "dist"] = "kd"
    """Loss on the soft targets: KL, BCE per class, decoupled, correlation (`train.loss.losses`)."""
    tail: Literal["uniform", "bucket", "zero"] = "uniform"
    """Probability of the classes that were not kept, in kd: flat, one bucket, or zero."""
    top_k: int = 0
    """Classes of each target in the loss: the most probable ones, as if no others were stored; 0 =
    all."""
    temperature: float = 1.0
    """T of the soft targets; the loss carries T² (Hinton et al., 2015)."""
    temperature_end: float = 0.0
    """T at the end, reached linearly over the run; 0 = `temperature` throughout."""
    distill_loss_weight: float = 1.0
    """Weight of the loss on the soft targets in mode kd."""
    distill_loss_weight_end: float = -1.0
    """The same at the end, reached linearly; negative = throughout."""
    dkd_alpha: float = 1.0
    """Weight of the true class against the rest in dkd."""
    dkd_beta: float = 2.0
    """Weight of the rest among themselves in dkd."""
    dist_beta: float = 1.0
    """Weight of the correlation of classes within a view in dist."""
    dist_gamma: float = 1.0
    """Weight of the correlation of views within a class in dist; depends on the batch."""
    task_loss: Literal["ce", "bce"] = "ce"
    """Loss on the labels: cross-entropy, or BCE per class as VanillaKD's recipes have it."""
    task_loss_weight: float = 0.0
    """Weight of the loss on the labels in mode kd."""
    task_loss_weight_end: float = -1.0
    """The same at the end, reached linearly; negative = throughout."""
    smoothing: float = 0.0
    """Label smoothing of the loss on the labels."""
    opt: str = "adamw"
    """timm's name of the optimizer."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    weight_decay: float = 0.05
    """Weight decay; not applied to biases and normalisation (timm's rule)."""
    sched: str = "cosine"
    """timm's name of the schedule."""
    sched_on_updates: bool = True
    """New learning rate with every update; false: with every epoch (timm's default)."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up; `epochs` include them."""
    warmup_prefix: bool = False
    """Begin the schedule after the warm-up; false: within it, at the rate it has by then."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    warmup_lr: float = 1e-6
    """Learning rate at the beginning of the warm-up."""
    layer_decay: float = 0.0
    """Factor of the learning rate from one layer to the one before it; 0 = off."""
    layer_decay_of: Literal["layers", "blocks"] = "layers"
    """Layers that `layer_decay` counts: timm's, with stem and head, or blocks alone as TinyViT's
    code: the stem has the rate of the first block, the head that of the last."""
    drop: float = 0.0
    """Dropout rate of the student's head."""
    drop_path: float = 0.0
    """Stochastic depth rate of the student."""
    grad_accum_steps: int = 1
    """Batches whose gradients are added up for one update: an update takes batch_size views
    times this."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 = off."""
    model_ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0 = off."""
    precision: Precision = "fp32"
    """Autocast type."""
    sync_bn: bool = False
    """Statistics of batch normalisation over all processes, as one process with the whole batch has
    them; otherwise each process has those of its share."""
    deterministic: bool = False
    """Deterministic algorithms only, at some cost on a GPU; with CUBLAS_WORKSPACE_CONFIG set."""
    compile: bool = False
    """Use of torch.compile for the student."""
    crop_pct: float = 0.875
    """Share of the shorter side that the center crop of the evaluation takes. The training loop
    crops, then resizes by the mean over an area; `kdcache eval` resizes first, as timm does."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written after every epoch and, in long ones, after this many minutes."""
    loader: Literal["auto", "native", "ffcv"] = "auto"
    """Renderer of the batches: FFCV's, the native one, or the faster one; pixels are the same."""
    threads: int = 0
    """Renderer threads; 0 = one per core. Pixels do not depend on it."""
    seed: int = 0
    """Seed of the student's initial weights and of the order of samples."""
    order_seed: int = -1
    """Seed of the order of samples; negative = `seed`. Students of several seeds with one order
    share their batches in a sweep."""

    def __post_init__(self) -> None:
        positive = (self.epochs, self.batch_size, self.views_per_epoch, self.aug_repeats)
        if min(positive) < 1:
            raise ValueError("epochs, batch_size, views_per_epoch, aug_repeats must be positive.")
        if self.aug_repeats > 1 and self.views_per_epoch > 1:
            raise ValueError("aug_repeats and views_per_epoch cannot both be above 1.")
        if self.temperature <= 0 or self.lr <= 0:
            raise ValueError("temperature and lr must be positive.")
        if self.grad_accum_steps < 1 or self.temperature_end < 0:
            raise ValueError("grad_accum_steps must be positive, temperature_end not negative.")
        if not (0 <= self.drop < 1 and 0 <= self.drop_path < 1 and 0 <= self.layer_decay <= 1):
            raise ValueError("drop, drop_path and layer_decay must be in 0..1.")
        if self.tail != "uniform" and self.loss != "kd":
            raise ValueError(f"tail={self.tail} goes with loss=kd only.")
        if not 0 < self.crop_pct <= 1:
            raise ValueError("crop_pct must be in (0, 1].")
        if min(self.seed, self.threads, self.min_views, self.num_views, self.top_k) < 0:
            raise ValueError("seed, threads, min_views, num_views and top_k cannot be negative.")

    @property
    def views_shown(self) -> int:
        """Views of a sample that the whole run shows; with repeats, on average over the samples."""
        return self.epochs * self.views_per_epoch

    @property
    def stream(self) -> tuple[Any, ...]:
        """Values that decide the batches: students that agree in them share their batches."""
        return self.seed_of_order, *(getattr(self, name) for name in _STREAM)

    @property
    def seed_of_order(self) -> int:
        """Seed of the order of samples."""
        return self.order_seed if self.order_seed >= 0 else self.seed

    def now(self, name: str, progress: float) -> float:
        """Interpolate a value that may change linearly over the run, at `progress` 0..1 of it."""
        begin, end = getattr(self, name), getattr(self, f"{name}_end")
        constant = end == 0 if name == "temperature" else end < 0
        return float(begin if constant else begin + (end - begin) * progress)


def build(mapping: Mapping[str, Any], context: str) -> TrainRecipe:
    """Build a recipe from what `dataclasses.asdict` made of one; errors begin with `context`."""
    return config.build(TrainRecipe, mapping, context)


def load(name: str, overrides: Iterable[str] = ()) -> TrainRecipe:
    """Read a recipe by its name or path; `overrides` are key=value strings."""
    return config.load(TrainRecipe, name, "train", overrides)
