"""One student by one call, and its evaluation: what `kdcache train` and `kdcache eval` do."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.config import Range
from cache_tools.errors import UsageError
from cache_tools.runtime import launcher
from cache_tools.runtime.arguments import check_count, several
from cache_tools.runtime.progress import shown
from train import recipe as recipes
from train.recipe import TrainRecipe

if TYPE_CHECKING:
    from train.data.inputs import Inputs
    from train.distributed import World
    from train.evaluate.metrics import Scores

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Result:
    """A trained student.

    Attributes:
        folder: Its run: weights in `model`, rows in log.jsonl.
        top1: Accuracy after the last epoch in percent; None without a labelled validation split.
        top1_ema: The same of its moving average; None when it has none.
        top1_best: The highest of both after any epoch.
        loss: Mean loss of the last epoch.
        seconds: Time of its training.
        facts: All of result.json.
    """

    folder: Path
    top1: float | None
    top1_ema: float | None
    top1_best: float | None
    loss: float
    seconds: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class DataScores:
    """Scores on one validation set."""

    source: str
    """Path or URL of the set."""
    networks: "dict[str, Scores]"
    """Scores by network: "student", "student_ema", "teacher"."""


@dataclass(frozen=True)
class CacheScores:
    """Scores on cached views, drawn again."""

    path: str
    """Path or URL of the cache."""
    fingerprint: str
    """Identity of the cache."""
    views: int
    """Views compared."""
    parts: int
    """Parts of the cache that they are in."""
    networks: "dict[str, Scores]"
    """Scores by network; "teacher" are the stored targets."""


@dataclass(frozen=True)
class EvalResult:
    """Accuracy of a student, and its agreement with a teacher; shares in percent.

    Attributes:
        top1: Share of the first validation set whose label is the first class; None without a set.
        top5: Share whose label is among the first five.
        top1_ema: As `top1`, of the moving average; None where there is none.
        top5_ema: As `top5`, of the moving average.
        images: Images of the first validation set.
        data: Scores on each set: its `source`, and `networks` with the scores by "student",
            "student_ema", "teacher". Scores are images, top1, top5, ece, agreement, kl (in nats)
            and, by ReaL labels, real_top1, real_top5, real_images; None where nothing was counted.
        cache: Scores on cached views: `path`, `fingerprint`, `views`, `parts` and `networks` as
            above, where "teacher" has the stored targets; None without a cache.
        facts: All that `kdcache eval --json` prints.
    """

    top1: float | None
    top5: float | None
    top1_ema: float | None
    top5_ema: float | None
    images: int
    data: tuple[DataScores, ...]
    cache: CacheScores | None
    facts: dict[str, Any]


def fit(
    recipe: str | Path | Mapping[str, Any] | TrainRecipe,
    *,
    cache: str | Path | Sequence[str | Path],
    out: str | Path,
    data: str | Path | None = None,
    weights: Sequence[float] | None = None,
    teacher: str | Path | Sequence[str | Path] = (),
    log_to: str | Sequence[str] = (),
    allow_partial: bool = False,
    fresh: bool = False,
    device: str | None = None,
    values: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    alone: bool = False,
    progress: bool = True,
) -> Result:
    """Train a student from a cache; resume a stopped run, return the result of a finished one.

        >>> result = kdcache.train(
        ...     "digits", cache="digits-cache.zarr", data="digits", out="run",
        ...     values={"epochs": 1, "views_per_epoch": 4}, progress=False,
        ... )
        >>> (result.folder / "model" / "model.safetensors").is_file()
        True

    Args:
        recipe: A recipe's name, file, keys, or the recipe itself.
        cache: Folder, zip or URL of the cache, or of several whose targets are mixed.
        out: Folder of the run.
        data: The images; None: where the cache was made from.
        weights: Weight of each cache; None: all alike.
        teacher: Teacher of mode=online, or one for each network of it, where the cache's name of
            it does not suffice.
        log_to: Further trackers, or one: "wandb".
        allow_partial: True to train on those samples that the data set has.
        fresh: True to train a finished or begun run anew.
        device: "cuda", "cuda:1" or "cpu"; None takes a GPU when there is one.
        values: Keys of the recipe to override: {"epochs": 10, "opt_kwargs": {"eps": 1e-6}}.
        on_epoch: Callback with the row of every finished epoch (epoch, loss, top1, …). An error
            in it ends the training, which the same call takes up again.
        alone: True to train in this process alone, whatever launcher (torchrun, srun, …) started
            it; False: the processes of one launcher train one student together.
        progress: True for a progress bar on a terminal.

    Raises:
        UsageError: Anything that cannot be, before any work is done.
        CacheIncomplete, CacheDamaged, CacheMismatch: The cache is not whole, or of other images.
        NonFinite: The loss became NaN or Inf.
        KeyboardInterrupt: A signal came; the checkpoint is written.
    """
    from train.data.inputs import open_inputs
    from train.trainer import trackers

    loaded = recipes.load(recipe, values=values)
    named, places = several(teacher), several(log_to)
    trackers.check(places)
    first = alone or launcher.find().rank == 0
    with shown(progress and first):
        source = None if data is None else str(data)
        inputs = open_inputs(several(cache), source, weights, allow_partial)
        runs = [(Path(out), loaded)]
        [result], _ = fit_all(runs, inputs, device, named, places, fresh, on_epoch, alone)
    names = ("top1", "top1_ema", "top1_best", "loss", "seconds")
    return Result(Path(out), **{name: result[name] for name in names}, facts=result)


def fit_all(
    runs: Sequence[tuple[Path, TrainRecipe]],
    inputs: "Inputs",
    device: str | None = None,
    teachers: Sequence[str] = (),
    log_to: Sequence[str] = (),
    fresh: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    alone: bool = False,
) -> "tuple[list[dict[str, Any]], World]":
    """Train one student after another on the same inputs; arguments and errors as of `fit`.

    Returns:
        The contents of each result.json, and the processes that trained together.
    """
    import torch

    from cache_tools.runtime.device import select
    from train import run_dir
    from train.data.device_batch import ONLINE
    from train.data.inputs import check_inputs
    from train.distributed import ALONE, join
    from train.trainer import loop, validate

    joined = nullcontext((ALONE, select(torch, device))) if alone else join(device)
    with joined as (world, torch_device):
        validate.set_up([item for _, item in runs], inputs, torch_device, world)
        validate.check([item for _, item in runs], inputs)
        old = world.on_main(lambda: [run_dir.init_run(*run, inputs, fresh) for run in runs])
        begun = [(*run, result) for run, result in zip(runs, old, strict=True)]
        if any(result is None and not item.follow for _, item, result in begun):
            check_inputs(inputs, world)
        online = any(item.mode == "online" and result is None for _, item, result in begun)
        teacher_fn = ONLINE.load()(inputs.store, [*teachers], torch_device) if online else None
        results = []
        for number, (folder, item, finished) in enumerate(begun, 1):
            if finished is not None:
                log.info(
                    "%s is finished; --fresh (in Python fresh=True) would train it anew", folder
                )

            def report(rows: dict[Path, dict[str, float]], of: Path = folder) -> None:
                if on_epoch is not None:
                    on_epoch(rows[of])

            place = f"{number} of {len(begun)}" if len(begun) > 1 else ""
            more = teacher_fn, world, tuple(log_to), report, place
            results.append(finished or loop.train(item, inputs, folder, torch_device, *more))
    return results, world


def evaluate(
    run: str | Path,
    *,
    data: str | Path | Sequence[str | Path] = (),
    real: str | Path | None = None,
    cache: str | Path | None = None,
    views: int = 4096,
    teacher: str | Path | None = None,
    architecture: str = "",
    size: int | None = None,
    crop: float | None = None,
    device: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Measure a student on validation sets, and compare it with its teacher.

        >>> result = kdcache.evaluate("run", data="digits", views=0, progress=False)
        >>> result.images, sorted(result.data[0].networks)
        (797, ['student', 'student_ema'])

    Args:
        run: Folder of a run; or a folder as timm saves networks, a timm name, "hf-hub:…".
        data: Validation sets: shards, class folders, or numbered folders; empty: the run's own.
        real: File of ReaL labels, or "timm".
        cache: Cache for the agreement with its teacher; None: the run's.
        views: Number of its views to compare on, about; 0: none.
        teacher: Name or folder of a teacher to run beside the student.
        architecture: Network of the student, which must be named where it is code:
            "python:MODULE:FUNCTION".
        size: Pixels a side; None: the run's, timm's test size.
        crop: Crop's share of the resized image, above 0 and at most 1; None: the run's, timm's.
        device: "cuda", "cuda:1", "cpu"; None: a GPU if there is one.
        force: True to go on with a teacher that agrees with the labels by chance only.
        progress: True for a progress bar on a terminal.

    Raises:
        UsageError: An argument that cannot be, or images without the student's labels.
        CacheMismatch, CacheDamaged: The cache is another one, or damaged.
        TeacherError: The network cannot be loaded.
    """
    if crop is not None and crop not in Range(0, 1, "least"):
        raise UsageError(f"crop={crop} (--crop) is no share: it must be above 0 and at most 1.")
    check_count("size", size, 1)
    check_count("views", views, 0)
    import torch

    from cache_tools.runtime.device import select
    from train.evaluate.evaluate import EvalRequest, measure
    from train.evaluate.metrics import Scores
    from train.evaluate.models import EvalOptions

    given = {"real": real, "cache": cache, "teacher": teacher}
    named = {name: None if path is None else str(path) for name, path in given.items()}
    request = EvalRequest(several(data), **named, views=views, force=force)
    options = EvalOptions(select(torch, device), size, crop, architecture)
    with shown(progress):
        facts = measure(str(run), request, options)

    def scores(networks: dict[str, dict[str, Any]]) -> dict[str, Scores]:
        return {name: Scores(**values) for name, values in networks.items()}

    on_cache = facts["cache"]
    if on_cache is not None:
        on_cache = CacheScores(**on_cache | {"networks": scores(on_cache["networks"])})
    names = ("top1", "top5", "top1_ema", "top5_ema", "images")
    return EvalResult(
        **{name: facts[name] for name in names},
        data=tuple(DataScores(one["source"], scores(one["networks"])) for one in facts["data"]),
        cache=on_cache,
        facts=facts,
    )
