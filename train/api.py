"""One student by one call, for each trial of a tuner such as Optuna or a W&B agent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_tools.config import canonical
from train.recipe import TrainRecipe


@dataclass(frozen=True)
class Result:
    """A trained student."""

    folder: Path
    """Its run: weights in `model`, rows in log.jsonl."""
    top1: float | None
    """Accuracy after the last epoch in percent; None without a labelled validation split."""
    top1_ema: float | None
    """The same of its moving average; None when it has none."""
    top1_best: float | None
    """The highest of both after any epoch."""
    loss: float
    """Mean loss of the last epoch."""
    seconds: float
    """Time of its training."""
    facts: dict[str, Any]
    """All of result.json."""


def fit(
    recipe: str | TrainRecipe,
    *,
    cache: str | Path | Sequence[str | Path],
    out: str | Path,
    data: str | None = None,
    device: str | None = None,
    values: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Result:
    """Train a student from a cache; resume a stopped run, return the result of a finished one.

    Args:
        recipe: A recipe, its name or its file.
        cache: Folder of the cache, or of several to be mixed alike.
        out: Folder of the run.
        data: The images; None: where the cache was made from.
        device: "cuda", "cuda:1" or "cpu"; None takes a GPU when there is one.
        values: Keys of the recipe to override.
        on_epoch: Callback with the row of every finished epoch (epoch, loss, top1, …). An error
            in it ends the training, which the same call takes up again.

    Raises:
        UsageError: Anything that cannot be, before any work is done.
        CacheIncomplete, CacheDamaged, CacheMismatch: The cache is not whole, or of other images.
        NonFinite: The loss became NaN or Inf.
        KeyboardInterrupt: A signal came; the checkpoint is written.
    """
    import torch

    from cache_tools.runtime.device import select
    from train import recipe as recipes
    from train import run_dir
    from train.data.inputs import check_inputs, open_inputs
    from train.trainer import loop, validate

    loaded = recipe if isinstance(recipe, TrainRecipe) else recipes.load(recipe)
    if values:
        values = canonical(values, TrainRecipe.ALIASES, "fit")
        loaded = recipes.build({**asdict(loaded), **values}, "fit")
    inputs, where = open_inputs(cache, data), select(torch, device)
    validate.check([loaded], inputs)
    validate.set_up(inputs, where)
    folder = Path(out)
    result = run_dir.init_run(folder, loaded, inputs, fresh=False)
    if result is None:
        check_inputs(inputs)
        report = None if on_epoch is None else lambda rows: on_epoch(rows[folder])
        result = loop.train(loaded, inputs, folder, where, on_epoch=report)
    names = ("top1", "top1_ema", "top1_best", "loss", "seconds")
    return Result(folder, **{name: result[name] for name in names}, facts=result)
