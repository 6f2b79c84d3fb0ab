"""Cost of a loop of one's own over `kdcache.Batches`, beside the loop of `kdcache train`.

    python -m benchmarks.batches [--repeats 7] [--json FILE]

The same student learns by kd from the same cache (`benchmarks.pairs`) in both, with the recipe's
optimizer and schedule; the loop of `kdcache train` logs and checks its losses, too. They take turns
in one process, each round beginning with the other one, and a ratio is taken within a round; the
first steps of a turn are not counted. CPU time, of all threads, is the clock of the bar: wall time
measures whatever else runs on the machine.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.machine import machine
from benchmarks.pairs import CPU, Bench, prepare
from benchmarks.replay import LIBRARIES, Clock, Turn, turn
from benchmarks.rounds import ratio, shown, spread
from train.data.batches import Batches
from train.loss import losses
from train.trainer import factory

MOST = 1.02
"""Greatest CPU time of a loop of one's own over that of `kdcache train`."""


def own(bench: Bench) -> Turn:
    """Train for a turn in the plain loop of README."""
    clock, recipe, inputs = Clock(bench), bench.recipe, bench.inputs
    torch.manual_seed(recipe.seed)
    student: Any = factory.create_student(recipe, inputs.num_classes).to(bench.device).train()
    config = student.pretrained_cfg
    batches = Batches(
        inputs.store.location,
        batch_size=recipe.batch_size,
        device=bench.device,
        mean=config["mean"],
        std=config["std"],
        seed=recipe.seed,
        epochs=recipe.epochs,
    )
    optimizer = factory.create_optimizer(recipe, student)
    scheduler = factory.create_scheduler(recipe, optimizer, len(batches))
    with clock.bar() as advance:
        for step, (images, targets) in enumerate(batches):
            scheduler.step_update(step)
            loss = losses.kd(student(images), targets, recipe.temperature)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advance(recipe.batch_size)
    return clock.turn(0.0)


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Both loops, in turns."""
    turns: dict[str, list[Turn]] = {"own": [], "train": []}
    for repeat in range(repeats):
        for name in ("own", "train") if repeat % 2 else ("train", "own"):
            turns[name].append(own(bench) if name == "own" else turn(bench, "cached"))
        print(f"turn {repeat + 1} of {repeats}", file=sys.stderr)
    over = {
        clock: ratio(*([getattr(t, clock) for t in turns[name]] for name in ("own", "train")))
        for clock in ("wall", "cpu")
    }
    return {
        "images per second": {n: spread(1 / t.wall for t in each) for n, each in turns.items()},
        "own / train": over,
        "bars": {f"own / train at most {MOST}, CPU time": over["cpu"]["median"] <= MOST},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(prepare(CPU[0], torch.device("cpu"), Path(folder)), options.repeats)
    for name, rate in found["images per second"].items():
        print(f"{name:6} {shown(rate, 0)} images/s")
    for clock, over in found["own / train"].items():
        print(f"own / train, {clock} time {shown(over, 3)}")
    for bar, holds in found["bars"].items():
        print(f"{'PASS' if holds else 'FAIL'}  {bar}")
    if options.json:
        found |= {"pair": CPU[0].name, "repeats": options.repeats, "machine": machine(LIBRARIES)}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
