"""Students at several sizes from one cache: time of a schedule of sizes, and accuracy.

    python -m benchmarks.sizes [--repeats 5] [--seeds 3] [--json FILE]

* "speed": whole runs of timm's resnet18 on photographs, at the cache's 128 px and with `SCHEDULE`,
  in turns, so that a noisy machine hits both alike. Ratios are taken within a turn; the first turn,
  in which libraries warm up, is not counted.
* "accuracy": the digits of `kdcache demo`, with the recipe digits: students of 16, 32 (the cache's)
  and 48 px and a schedule of all three, each evaluated at its last size, over seeds.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.machine import machine
from benchmarks.pairs import Bench, Pair, prepare
from benchmarks.rounds import ratio, shown, spread
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
EPOCHS = 10
SCHEDULE = ((0.0, 72.0), (0.5, 104.0), (0.8, 128.0))
"""Sizes in the proportions of 128, 176 and 224 px, on the shares 50, 30 and 20 % of the run."""
DIGITS: dict[str, Size] = {
    "16 px": 16,
    "32 px": 0,
    "48 px": 48,
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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {"machine": machine()}
    if options.repeats:
        with tempfile.TemporaryDirectory() as folder:
            results["speed"] = speed(prepare(PAIR, CPU, Path(folder)), options.repeats)
        for name, found in results["speed"].items():
            print(f"{name}: {shown(found, 2) if isinstance(found, dict) else found}")
    if options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            results["accuracy"] = accuracy(Path(folder), options.seeds)
        print("| students | top-1, % (range) |\n|---|---|")
        for name, values in results["accuracy"].items():
            print(f"| {name} | {shown(spread(values), 1)} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
