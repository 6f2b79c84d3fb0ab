"""Students at several sizes from one cache: time of a schedule and of a sweep, and accuracy.

    python -m benchmarks.sizes [--repeats 5] [--seeds 3] [--only speed|sweep|accuracy] [--json FILE]

* "speed": whole runs of timm's resnet18 on photographs, at the cache's 128 px and with `SCHEDULE`,
  in turns, so that a noisy machine hits both alike. Ratios are taken within a turn; the first turn,
  in which libraries warm up, is not counted.
* "sweep": students of three sizes in one cohort, whose pictures are decoded once, against the same
  three one after another. Views of 224 px with RandAugment, mixup and cutmix (recipe vanillakd-a2)
  of JPEGs of 500×375; the student is next to nothing, a linear layer on a mean of pixels, so that
  the CPU time of all threads is that of decoding and rendering.
* "accuracy": the digits of `kdcache demo`, with the recipe digits: students of 16, 32 (the cache's)
  and 48 px, a schedule of small steps and one of all three sizes, each evaluated at its last size,
  over seeds.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch
from timm.models import register_model
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.pairs import Bench, Pair, prepare
from benchmarks.rounds import ratio, shown, spread
from benchmarks.sweep import HEAVY
from pipeline import demo
from pipeline import recipe as recipes
from pipeline.run import run as make
from train import recipe as training
from train import run_dir
from train.data.inputs import Inputs, open_inputs
from train.recipe import Size, TrainRecipe
from train.trainer import loop

CPU = torch.device("cpu")
PAIR = Pair("resnet18", "test_resnet", 128, batch=16, steps=3, warmup=1)
SWEPT = Pair(
    "bench_mean", "test_resnet", 224, batch=32, steps=12, warmup=0, short_side=375, views=HEAVY
)
SWEPT_SIZES = (128, 160, 224)
EPOCHS = 10
SCHEDULE = ((0.0, 72.0), (0.5, 104.0), (0.8, 128.0))
"""Sizes in the proportions of 128, 176 and 224 px, on the shares 50, 30 and 20 % of the run."""
DIGITS: dict[str, Size] = {
    "16 px": 16,
    "32 px": 0,
    "48 px": 48,
    "24, 28, 32 px": ((0.0, 24.0), (0.3, 28.0), (0.6, 32.0)),
    "16, 32, 48 px": ((0.0, 16.0), (0.3, 32.0), (0.6, 48.0)),
}


def train(recipe: TrainRecipe, inputs: Inputs) -> dict[str, Any]:
    """Train in a folder of its own; result.json, with the CPU time of all threads."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run_dir.init_run(out, recipe, inputs, fresh=False)
        begin = time.process_time()
        result = loop.train(recipe, inputs, out, CPU)
        return result | {"cpu": time.process_time() - begin}


class Mean(nn.Module):
    """A linear layer on the mean of a few pixels: a student of any size that costs nothing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 3
        self.head = nn.Linear(self.num_features, num_classes)
        self.pretrained_cfg = {
            "architecture": "bench_mean",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": num_classes,
        }

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x[:, :, ::32, ::32].mean(dim=(2, 3)))
        return logits


@register_model
def bench_mean(pretrained: bool = False, num_classes: int = 1000, **_: Any) -> nn.Module:
    return Mean(num_classes)


def swept(bench: Bench, groups: Sequence[Sequence[int]]) -> dict[str, float]:
    """Train a cohort of each group of sizes; seconds per image of all, by clock."""
    spent, images = {"seconds": 0.0, "cpu": 0.0}, 0
    for sizes in groups:
        with tempfile.TemporaryDirectory() as folder:
            recipe = replace(bench.recipe, epochs=2)
            runs = [(Path(folder) / f"{size}", replace(recipe, size=size)) for size in sizes]
            for out, of_size in runs:
                run_dir.init_run(out, of_size, bench.inputs, fresh=False)
            begin = time.monotonic(), time.process_time()
            results = loop.train_cohort(runs, bench.inputs, CPU)
            spent["seconds"] += time.monotonic() - begin[0]
            spent["cpu"] += time.process_time() - begin[1]
        images += sum(result["images"] for result in results if isinstance(result, dict))
    return {clock: value / images for clock, value in spent.items()}


def sweep(bench: Bench, repeats: int) -> dict[str, Any]:
    """Train students of three sizes in one cohort and apart, in turns."""
    arms = {"shared": [SWEPT_SIZES], "apart": [(size,) for size in SWEPT_SIZES]}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name in sorted(arms, reverse=repeat % 2 == 1):
            turns[name].append(swept(bench, arms[name]))
        print(f"turn {repeat} of {repeats}", file=sys.stderr)
    found: dict[str, Any] = {"sizes": SWEPT_SIZES}
    for clock, name in (("cpu", "CPU time"), ("seconds", "time")):
        own, other = ([turn[clock] for turn in turns[arm][1:]] for arm in arms)
        found[f"shared, ms of {name} per image"] = spread([1000 * value for value in own])
        found[f"apart, ms of {name} per image"] = spread([1000 * value for value in other])
        found[f"shared / apart, {name}"] = ratio(own, other)
    return found


def speed(bench: Bench, repeats: int) -> dict[str, Any]:
    """Train with the schedule and at the full size, in turns."""
    full = replace(bench.recipe, epochs=EPOCHS)
    arms = {"full": full, "schedule": replace(full, size=SCHEDULE)}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name in sorted(arms, reverse=repeat % 2 == 1):
            turns[name].append(train(arms[name], bench.inputs))
        print(f"turn {repeat} of {repeats}", file=sys.stderr)
    own, other = (found[1:] for found in (turns["schedule"], turns["full"]))
    rates = [[one["images"] / one[clock] for one in own] for clock in ("seconds", "cpu")]
    return {
        "pair": bench.pair.name,
        "schedule": SCHEDULE,
        "images per second": spread(rates[0]),
        "schedule / full size, images per second": ratio(
            rates[0], [one["images"] / one["seconds"] for one in other]
        ),
        "schedule / full size, images per second of CPU time": ratio(
            rates[1], [one["images"] / one["cpu"] for one in other]
        ),
    }


def accuracy(folder: Path, seeds: int) -> dict[str, Any]:
    """Top-1 of the digits' students by size, in percent, seed by seed."""
    demo.write_shards(folder / "digits")
    demo.train_teacher(folder / "digits", folder / "teacher")
    recipe = recipes.load("digits")
    make(recipe, str(folder / "digits"), str(folder / "teacher"), folder / "cache.zarr", "cpu")
    torch.set_num_threads(1)
    inputs, plain = open_inputs(folder / "cache.zarr", None), training.load("digits")
    return {
        name: [train(replace(plain, size=size, seed=s), inputs)["top1_ema"] for s in range(seeds)]
        for name, size in DIGITS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns; 0: accuracy alone")
    parser.add_argument("--seeds", type=int, default=3, help="students of a size; 0: speed alone")
    parser.add_argument("--only", choices=("speed", "sweep", "accuracy"), help="one of the three")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {"machine": machine()}
    for part, pair, measure in (("speed", PAIR, speed), ("sweep", SWEPT, sweep)):
        if options.repeats and options.only in (None, part):
            with tempfile.TemporaryDirectory() as folder:
                results[part] = measure(prepare(pair, CPU, Path(folder)), options.repeats)
            for name, found in results[part].items():
                print(f"{name}: {shown(found, 2) if isinstance(found, dict) else found}")
    if options.seeds and options.only in (None, "accuracy"):
        with tempfile.TemporaryDirectory() as folder:
            results["accuracy"] = accuracy(Path(folder), options.seeds)
        print("| students | top-1, % (range) |\n|---|---|")
        for name, values in results["accuracy"].items():
            print(f"| {name} | {shown(spread(values), 1)} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
