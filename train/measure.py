"""Measure a finished run again: its student, loaded as anyone would load it."""

from pathlib import Path
from typing import Any

import timm
import torch

from cache_tools import shards, threads
from cache_tools.errors import CacheIncomplete, UsageError
from cache_tools.shards import NO_LABEL
from train import recipe as recipes
from train import run
from train.evaluate import evaluate
from train.input import Input


def measure(folder: Path, data: str | None, device: str | None) -> dict[str, Any]:
    """Accuracy of the students of a run on a validation split.

    Args:
        folder: The run.
        data: Data set; None takes the one the run was trained on.
        device: Where to run; None takes a GPU when there is one.

    Raises:
        CacheNotFound, CacheIncomplete: No run, or one that is not finished.
        UsageError: No labelled validation images of the student's classes.
    """
    config = run.read_config(folder)
    recipe = recipes.build(config["recipe"], f"{folder}/config.json")
    if not (folder / "model" / "model.safetensors").is_file():
        raise CacheIncomplete(f"the run {folder} is not finished. Run its command again to go on.")
    source = data or config["data"]
    images = shards.open_images(source, "validation")
    size = int(config["view_size"])
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cpu":
        torch.set_num_threads(threads.for_torch(size)[0])
    facts: dict[str, Any] = {"run": str(folder), "images": len(images)}
    for name, key in (("model", ""), ("model-ema", "_ema")):
        if not (folder / name).is_dir():
            facts[f"top1{key}"] = facts[f"top5{key}"] = None
            continue
        model: Any = timm.create_model(f"local-dir:{folder / name}", pretrained=True).to(where)
        if NO_LABEL in images.label_N or int(images.label_N.max()) >= model.num_classes:
            raise UsageError(
                f"the validation images of {source} are not labelled with the {model.num_classes} "
                "classes of this student. Pass --data with a data set that is."
            )
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        feed = Input(where, recipe.precision, tuple(mean), tuple(std))
        accuracy = evaluate(model, images, feed, size, recipe.eval_crop)
        facts |= {f"top1{key}": round(accuracy.top1, 3), f"top5{key}": round(accuracy.top5, 3)}
    return facts
