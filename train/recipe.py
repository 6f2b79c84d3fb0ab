"""Recipe of stage 2: a TOML file becomes a `TrainRecipe`. Names are timm's.

Every value that decides a student's weights is a field here, so that the recipe saved with a run
reproduces it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from cache_tools import config
from cache_tools.config import Kwargs, Range
from cache_tools.spec.teacher import Precision

Mode = Literal["kd", "labels", "online"]
Tail = Literal["uniform", "bucket", "zero"]
Count = Annotated[int, Range(1, 2**20)]
Weight = Annotated[float, Range(0, 1e6)]
LastWeight = Annotated[float, Range(-1, 1e6)]
Share = Annotated[float, Range(0, 1, "most")]
Size = int | tuple[tuple[float, ...], ...]
_PIXELS = Range(0, 4096)
_VIEWS = (
    "grad_accum_steps",
    "views_per_epoch",
    "aug_repeats",
    "num_views",
    "view_order",
)
ORDER = ("seed", "batch_size", *_VIEWS)
"""Keys that decide which views are in which batch, the seed of the order first."""
FOLLOW = ("follow", "follow_timeout")
"""Keys of runs that wait for the cache."""
_RUNNING = ("loader", "threads", "checkpoint_minutes", "deterministic")
STREAM = (*_VIEWS, *_RUNNING, *FOLLOW)
"""Keys that decide, with batch sizes and the seed of the order, how batches are made."""


@dataclass(frozen=True)
class Phase:
    """Epochs in a row in which views have one size."""

    first: int
    """First epoch."""
    size: int
    """Pixels a side of the views; 0 = the cache's."""
    batch_size: int
    """Views per step."""


@dataclass(frozen=True)
class TrainRecipe:
    """Everything about a run except the paths of cache, data and output.

    Each field is a recipe key: docs/reference/keys.md has type, default, range and text of each.
    """

    ALIASES: ClassVar[dict[str, str]] = {
        "kept": "top_k",
        "repeats": "aug_repeats",
        "accumulate": "grad_accum_steps",
        "eval_crop": "crop_pct",
        "ema_decay": "model_ema_decay",
    }
    """Former names of keys, which recipes, overrides and saved configs may still have."""
    student: str
    """Name of the student: timm's; torchvision:NAME, transformers:NAME, python:MODULE:FUNCTION."""
    epochs: Count
    """Epochs; in each, every sample is shown `views_per_epoch` times."""
    student_kwargs: Kwargs = field(default_factory=Kwargs)
    """Arguments of timm's network, as its --model-kwargs: img_size, patch_size, drop_rate,
    proj_drop_rate, global_pool …; a saved student has them in its config.json."""
    cache_recipe: str = ""
    """Recipe of stage 1 that makes its cache; "" = the recipe of the same name."""
    min_views: Annotated[int, Range(0, 10_000)] = 0
    """Fewest views of a sample that the cache must have for this schedule; 0 = any number."""
    init: str = ""
    """Initial weights of the student: a timm name with its tag, "hf-hub:user/model",
    "torchvision:NAME:WEIGHTS", "transformers:NAME",
    "local-dir:FOLDER" as timm and `kdcache train` save networks, or a safetensors file; "" =
    random. A head of another number of classes starts at random."""
    mode: Mode = "kd"
    """"kd" learns from the stored targets, "labels" from the labels, "online" from the teacher in
    the loop, all on the same views."""
    batch_size: Count = 256
    """Views per step; the last incomplete batch of an epoch is dropped."""
    size: Size = 0
    """Pixels a side of the views that the student is shown: the cache's views with the same boxes,
    flips, operations and partners, rendered from the originals at this size; 0 = the cache's. Or a
    schedule, [[0.0, 128], [0.5, 176], [0.85, 224, 512]]: from each share of the run on the pixels
    and, where it is named, the batch size; a size begins with an epoch."""
    eval_size: Annotated[int, Range(0, 4096)] = 0
    """Pixels a side of the evaluation, larger than `size` as in FixRes (Touvron et al., NeurIPS
    2019); 0 = that of the training."""
    views_per_epoch: Annotated[int, Range(1, 10_000)] = 1
    """Views of each sample per epoch, m: epoch e shows views e·m … e·m + m - 1, modulo V."""
    aug_repeats: Annotated[int, Range(1, 10_000)] = 1
    """Repeated augmentation r: an epoch shows one r-th of the samples, each in r views of the same
    update, in different processes and steps of it as far as there are several."""
    num_views: Annotated[int, Range(0, 10_000)] = 0
    """Views of the cache that are shown, from the first one on; 0 = all."""
    view_order: Literal["cycle", "shuffle"] = "cycle"
    """"cycle" shows the views of the cache in their order and then again; "shuffle" draws the order
    anew each time all have been shown."""
    loss: Literal["kd", "bkd", "dkd", "dist"] = "kd"
    """Loss on the soft targets: KL, BCE per class, decoupled, correlation (`train.loss.losses`)."""
    tail: Tail = "uniform"
    """Probability of the classes that were not kept, in kd: flat, one bucket, or zero."""
    top_k: Annotated[int, Range(0, 2**24)] = 0
    """Classes of each target in the loss: the most probable ones, as if no others were stored; 0 =
    all."""
    temperature: Annotated[float, Range(0.01, 1000)] = 1.0
    """T of the soft targets; the loss carries T² (Hinton et al., 2015)."""
    temperature_end: Annotated[float, Range(0, 1000)] = 0.0
    """T at the end, reached linearly over the run; 0 = `temperature` throughout."""
    distill_loss_weight: Weight = 1.0
    """Weight of the loss on the soft targets in mode kd."""
    distill_loss_weight_end: LastWeight = -1.0
    """The same at the end, reached linearly; negative = throughout."""
    dkd_alpha: Weight = 1.0
    """Weight of the true class against the rest in dkd."""
    dkd_beta: Weight = 2.0
    """Weight of the rest among themselves in dkd."""
    dist_beta: Weight = 1.0
    """Weight of the correlation of classes within a view in dist."""
    dist_gamma: Weight = 1.0
    """Weight of the correlation of views within a class in dist; depends on the batch."""
    task_loss: Literal["ce", "bce"] = "ce"
    """Loss on the labels: cross-entropy, or BCE per class as VanillaKD's recipes have it."""
    task_loss_weight: Weight = 0.0
    """Weight of the loss on the labels in mode kd."""
    task_loss_weight_end: LastWeight = -1.0
    """The same at the end, reached linearly; negative = throughout."""
    smoothing: Share = 0.0
    """Label smoothing of the loss on the labels."""
    bce_target_thresh: Annotated[float, Range(-1, 1)] = -1.0
    """Targets of task_loss=bce above this are 1 and others 0, after mixing and smoothing (as in
    ResNet strikes back); negative = as they are."""
    opt: str = "adamw"
    """timm's name of the optimizer."""
    opt_kwargs: Kwargs = field(default_factory=Kwargs)
    """Arguments of timm's optimizer, as its --opt-kwargs: betas, eps, momentum, nesterov …"""
    lr: Annotated[float, Range(0, 1e6, "least")] = 1e-3
    """Learning rate after warm-up."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    """Weight decay; not applied to biases and normalisation (timm's rule)."""
    sched: str = "cosine"
    """timm's name of the schedule."""
    sched_on_updates: bool = True
    """New learning rate with every update; false: with every epoch (timm's default)."""
    warmup_epochs: Annotated[int, Range(0, 2**20)] = 0
    """Epochs of linear warm-up; `epochs` include them."""
    warmup_prefix: bool = False
    """Begin the schedule after the warm-up; false: within it, at the rate it has by then."""
    min_lr: Annotated[float, Range(0, 1e6)] = 0.0
    """Learning rate at the end."""
    warmup_lr: Annotated[float, Range(0, 1e6)] = 1e-6
    """Learning rate at the beginning of the warm-up."""
    layer_decay: Annotated[float, Range(0, 1)] = 0.0
    """Factor of the learning rate from one layer to the one before it; 0 = off."""
    layer_decay_of: Literal["layers", "blocks"] = "layers"
    """Layers that `layer_decay` counts: timm's, with stem and head, or blocks alone as TinyViT's
    code: the stem has the rate of the first block, the head that of the last."""
    drop: Share = 0.0
    """Dropout rate of the student's head."""
    drop_path: Share = 0.0
    """Stochastic depth rate of the student."""
    grad_accum_steps: Count = 1
    """Batches whose gradients are added up for one update: an update takes batch_size views
    times this."""
    clip_grad: Annotated[float, Range(0, 1e9)] = 0.0
    """Largest norm of the gradient; 0 = off."""
    model_ema_decay: Share = 0.0
    """Decay of the moving average of the weights; 0 = off."""
    model_ema_warmup: bool = False
    """Smaller decay in the first updates: at most 1 - (1 + n)^(-2/3) in update n + 1 (timm's)."""
    precision: Precision = "fp32"
    """Autocast type."""
    sync_bn: bool = False
    """Statistics of batch normalisation over all processes, as one process with the whole batch has
    them; otherwise each process has those of its share."""
    deterministic: bool = False
    """Deterministic algorithms only, at some cost on a GPU; with CUBLAS_WORKSPACE_CONFIG set."""
    compile: bool = False
    """Use of torch.compile for the student."""
    grad_checkpointing: bool = False
    """Activations computed again on the way back, for less memory and about a third more time."""
    crop_pct: Annotated[float, Range(0, 1, "least")] = 0.875
    """Share of the shorter side that the center crop of the evaluation takes. The training loop
    crops, then resizes by the mean over an area; `kdcache eval` resizes first, as timm does."""
    follow: bool = False
    """Training from a cache that is still being made: each epoch waits for its parts. The student
    is the one of the finished cache."""
    follow_timeout: Annotated[float, Range(0, 1e6)] = 0.0
    """Minutes after which waiting ends with an error: without a process that makes the cache, where
    a lock beside its folder shows that, else without a new part; 0 = 10 and 60."""
    checkpoint_minutes: Annotated[float, Range(0, 1e6)] = 10.0
    """A checkpoint is written after every epoch and, in long ones, after this many minutes."""
    loader: Literal["auto", "native", "ffcv"] = "auto"
    """Renderer of the batches: FFCV's, the native one, or the faster one; pixels are the same."""
    threads: Annotated[int, Range(0, 2**12)] = 0
    """Renderer threads; 0 = one per core. Pixels do not depend on it."""
    seed: Annotated[int, Range(0, 2**62)] = 0
    """Seed of the student's initial weights and of the order of samples."""
    order_seed: Annotated[int, Range(-1, 2**62)] = -1
    """Seed of the order of samples; negative = `seed`. Students of several seeds with one order
    share their batches in a sweep."""

    def __post_init__(self) -> None:
        config.check_ranges(self)
        if self.aug_repeats > 1 and self.views_per_epoch > 1:
            raise ValueError("aug_repeats and views_per_epoch cannot both be above 1.")
        if 0 < self.temperature_end < 0.01:
            raise ValueError("temperature_end must be 0 or at least 0.01.")
        if self.tail != "uniform" and self.loss != "kd":
            raise ValueError(f"tail={self.tail} goes with loss=kd only.")
        if self.bce_target_thresh >= 0 and self.task_loss != "bce":
            raise ValueError("bce_target_thresh goes with task_loss=bce only.")
        if self.model_ema_warmup and not self.model_ema_decay:
            raise ValueError("model_ema_warmup needs a moving average: set model_ema_decay.")

        if not isinstance(self.size, int):
            self._check_schedule(self.size)
        elif self.size not in _PIXELS:
            raise ValueError(f"size must be {_PIXELS}, found {self.size}.")

    def _check_schedule(self, size: tuple[tuple[float, ...], ...]) -> None:
        """Refuse sizes that are no schedule of this run; raises ValueError."""
        for row in size:
            whole = all(number == int(number) for number in row[1:])
            if len(row) not in (2, 3) or not whole or not all(1 <= n <= 4096 for n in row[1:2]):
                raise ValueError(
                    f"size: {list(row)} is no row of a schedule: the share of the run, pixels (1 "
                    "to 4,096) and, if it differs, the batch size, such as [0.5, 176]."
                )
            if len(row) == 3 and not 1 <= row[2] <= 2**20:
                raise ValueError(f"size: a batch size must be 1 to 1,048,576, found {row[2]:g}.")
        firsts = [phase.first for phase in self.phases]
        if firsts[:1] != [0] or firsts != sorted({*firsts}) or firsts[-1] >= self.epochs:
            raise ValueError(
                f"size: its rows begin at the epochs {firsts} of {self.epochs}. The first row "
                "begins at share 0.0, and each later one at a later epoch: leave out rows, or "
                "raise epochs."
            )

    def value(self, key: str) -> Any:
        """Return the value of a key or, as "opt_kwargs.eps", of an argument; None where unset."""
        name, _, argument = key.partition(".")
        found = getattr(self, name)
        return found.get(argument) if argument else found

    @property
    def views_shown(self) -> int:
        """Views of a sample that the whole run shows; with repeats, on average over the samples."""
        return self.epochs * self.views_per_epoch

    @property
    def order(self) -> tuple[Any, ...]:
        """Values that decide which views are in which batch."""
        return self.seed_of_order, *(getattr(self, name) for name in ORDER[1:])

    @property
    def stream(self) -> tuple[Any, ...]:
        """Values that decide the views of each step: students that agree share what is decoded.

        Those of one size share their batches.
        """
        return (self.seed_of_order, self.batch_sizes, *(getattr(self, name) for name in STREAM))

    @property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """Epochs at which the batch size changes, the first one included, and its value."""
        found: list[tuple[int, int]] = []
        for phase in self.phases:
            if not found or found[-1][1] != phase.batch_size:
                found.append((phase.first, phase.batch_size))
        return tuple(found)

    @property
    def seed_of_order(self) -> int:
        """Seed of the order of samples."""
        return self.order_seed if self.order_seed >= 0 else self.seed

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of the run in their order."""
        if isinstance(self.size, int):
            return (Phase(0, self.size, self.batch_size),)
        return tuple(
            Phase(
                math.ceil(round(share * self.epochs, 9)),
                int(size),
                int(*batch or [self.batch_size]),
            )
            for share, size, *batch in self.size
        )

    def phase_at(self, epoch: int) -> Phase:
        """Return the phase of an epoch."""
        return [phase for phase in self.phases if phase.first <= epoch][-1]

    def sizes(self, own: int) -> list[int]:
        """List the pixels a side of the views of each phase; `own`: those of the cache's views."""
        return [phase.size or own for phase in self.phases]

    def size_at(self, epoch: int, own: int) -> int:
        """Return the pixels a side of the views of an epoch; `own` as of `sizes`."""
        return self.phase_at(epoch).size or own

    def train_size(self, own: int) -> int:
        """Return the pixels a side of the views it is shown last; `own` as of `sizes`."""
        return self.sizes(own)[-1]

    def largest(self, own: int) -> tuple[int, int]:
        """Return size and batch size of the phase with the most pixels per step."""
        sizes = zip(self.sizes(own), self.phases, strict=True)
        pairs = [(size, phase.batch_size) for size, phase in sizes]
        return max(pairs, key=lambda pair: pair[0] ** 2 * pair[1])

    def measured_size(self, own: int) -> int:
        """Return the pixels a side of its evaluation; `own` as of `train_size`."""
        return self.eval_size or self.train_size(own)

    def now(self, name: str, progress: float) -> float:
        """Interpolate a value that may change linearly over the run, at `progress` 0..1 of it."""
        begin, end = getattr(self, name), getattr(self, f"{name}_end")
        constant = end == 0 if name == "temperature" else end < 0
        return float(begin if constant else begin + (end - begin) * progress)


def build(mapping: Mapping[str, Any], context: str) -> TrainRecipe:
    """Build a recipe from what `dataclasses.asdict` made of one; errors begin with `context`."""
    return config.build(TrainRecipe, mapping, context)


def load(
    recipe: str | Path | Mapping[str, Any] | TrainRecipe,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> TrainRecipe:
    """Read a recipe by its name or path, or of a dict; arguments as of `config.load`."""
    return config.load(TrainRecipe, recipe, "train", overrides, values or {})
