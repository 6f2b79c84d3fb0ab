"""Cost of training from a cache, beside training on labels and beside the teacher in the loop.

    python -m benchmarks.replay [--repeats 7] [--json FILE]

Views are crops of JPEGs made from photographs (`benchmarks.render`), with mixup. Each pair of a
student and a teacher has one cache; the contestants are `train.trainer.loop` itself on that cache,
in turns, each time from another contestant on, so that a noisy machine hits all alike:

* "labels": cross-entropy; the loader is the same, targets included, so that only the loss differs.
* "cached": kd from the stored targets.
* "online": the teacher in the loop.

A turn is a few steps; the first ones, in which the loader fills and libraries warm up, are not
counted. Ratios are taken within a turn; their range over the turns shows the machine's noise. Two
clocks:

* "wall" is a user's measure: images per second. Where other programs use the same cores it measures
  them, too.
* "CPU" is the CPU time of all threads of the process, independent of other programs. It is the
  clock of the bars where the student is on the CPU; a GPU's work is not in it.

"student", "labels" and "teacher" are the bare costs on a batch already on the device: forward, loss
(from targets or labels), backward and update; forward and choice of classes. "bare" is labels /
student: the two steps alternate, so it is the least noisy measure of the targets' cost. With a
loader that costs nothing, a cached run is

    limit = (student + teacher) / student

times as fast as online on one device, and no more; "reached" is the measured ratio over it. Where a
student is light beside its teacher a cache pays most.

Shares of a cached step: waiting for data (of the run's wall time, its beginning included); the loss
(forward and backward from the logits, beside that of cross-entropy); the lookup (decoding a batch's
targets, its part of reading and checking the epoch's, and taking them to the device). The loader
looks up for labels, too; "without lookup" is what cached / labels would be if labels did not.

Two torch threads on two cores would fight with the renderer for them; torch has one here. Teachers
but for Lite0 have random weights, on which speed does not depend: they keep as many classes as
the cache may, more than trained ones. The pairs with BEiTv2-B are measured where there is a GPU.
"""

import argparse
import contextlib
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import torch

from benchmarks.machine import machine
from benchmarks.pairs import CPU, GPU, Bench, prepare
from benchmarks.parts import Parts, wait
from benchmarks.rounds import Figure, ratio, shown, spread
from cache_tools.runtime import progress
from train import run_dir
from train.trainer import loop

MODES = {"labels": "labels", "cached": "kd", "online": "online"}
LIBRARIES = ("torch", "timm", "numpy", "numba", "zarr", "simplejpeg", "opencv-python-headless")
GOAL = 0.98
"""Least speed of cached over labels."""


@dataclass(frozen=True)
class Turn:
    """Time of one contestant in one turn, per image."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of CPU time of all threads."""
    wait: float
    """Share of the run that waited for data, its beginning included."""


def turn(bench: Bench, contestant: str) -> Turn:
    """Train for a turn."""
    clock = Clock(bench)
    recipe = replace(bench.recipe, mode=MODES[contestant])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_dir.init_run(out, recipe, bench.inputs, fresh=False)
        ask = bench.ask if contestant == "online" else None
        with mock.patch.object(progress, "bar", clock.bar):
            result = loop.train(recipe, bench.inputs, out, bench.device, ask)
    return clock.turn(result["data_wait"])


class Clock(progress.Bar):
    """Replacement of the progress bar; reads the time after the warm-up and at the end."""

    def __init__(self, bench: Bench) -> None:
        super().__init__("turn", bench.pair.warmup + bench.pair.steps, "steps")
        self._bench, self._step = bench, 0
        self._read: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def bar(self, *_: Any, **__: Any) -> Iterator[progress.Bar]:
        """Replace `progress.bar`."""
        yield self

    def __call__(self, count: int, note: str = "", /) -> None:
        """Read the time at the end of a step that is the last of the warm-up, or of all."""
        if not count:  # a note, at the end of a step that was counted
            return
        pair, self._step = self._bench.pair, self._step + 1
        if self._step in (pair.warmup, pair.warmup + pair.steps):
            wait(self._bench.device)
            self._read.append((time.perf_counter(), time.process_time()))

    def turn(self, waited: float) -> Turn:
        """Time between the two readings, per image."""
        (wall, cpu), (wall_end, cpu_end) = self._read
        images = self._bench.pair.batch * self._bench.pair.steps
        return Turn((wall_end - wall) / images, (cpu_end - cpu) / images, waited)


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """All contestants and parts, in turns."""
    parts = Parts(bench)
    turns: dict[str, list[Turn]] = {name: [] for name in MODES}
    alone: list[dict[str, float]] = []
    names = list(MODES)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(turn(bench, name))
        alone.append(parts.seconds())
        print(f"{bench.pair.name}: turn {repeat + 1} of {repeats}", file=sys.stderr)
    medians = {part: statistics.median(row[part] for row in alone) for part in alone[0]}
    return summary(bench, turns, medians)


def summary(bench: Bench, turns: dict[str, list[Turn]], alone: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios with their range, shares."""
    clock = "cpu" if bench.device.type == "cpu" else "wall"
    step = statistics.median(getattr(t, clock) for t in turns["cached"]) * bench.pair.batch
    limit = (alone["student"] + alone["teacher"]) / alone["student"]
    over_labels, over_online = (speed(turns, other) for other in ("labels", "online"))
    shares = {part: alone[part] / step for part in ("loss", "cross-entropy", "lookup")}
    held = over_labels[clock]["median"]
    return {
        "images per second": {
            name: spread(1 / t.wall for t in each) for name, each in turns.items()
        },
        "clock of shares and bars": clock,
        "cached / labels": over_labels,
        "cached / labels, bare": alone["labels"] / alone["student"],
        "cached / labels, without lookup": held * (1 - shares["lookup"]),
        "cached / online": over_online,
        "limit of cached / online": limit,
        "reached": over_online[clock]["median"] / limit,
        "ms per step": {name: 1000 * value for name, value in alone.items()}
        | {"cached step": 1000 * step},
        "share of a step": {"data wait": statistics.median(t.wait for t in turns["cached"])}
        | shares,
        "kept classes": float(bench.inputs.store.read_view(0).count_B.mean()),
        "bars": {f"cached / labels at least {GOAL}, {clock} time": held >= GOAL},
    }


def speed(turns: dict[str, list[Turn]], other: str) -> dict[str, Figure]:
    """Speed of cached over another's, turn by turn, in wall and in CPU time."""

    def times(name: str, clock: str) -> list[float]:
        return [getattr(turn, clock) for turn in turns[name]]

    return {clock: ratio(times(other, clock), times("cached", clock)) for clock in ("wall", "cpu")}


def table(name: str, result: dict[str, Any]) -> Iterator[str]:
    """One pair in Markdown."""
    yield f"| {name} | images/s | cached over it, wall | cached over it, CPU |"
    yield "|---|---|---|---|"
    for mode, rate in result["images per second"].items():
        over = result.get(f"cached / {mode}", {})
        ratios = " | ".join(shown(over[clock], 3) if over else "" for clock in ("wall", "cpu"))
        yield f"| {mode} | {shown(rate, 1)} | {ratios} |"
    ms = {key: f"{value:.3g} ms" for key, value in result["ms per step"].items()}
    shares = {key: f"{value:.2%}" for key, value in result["share of a step"].items()}
    limit, reached = result["limit of cached / online"], result["reached"]
    yield f"\nlimit of cached / online {limit:.2f}, reached {reached:.0%}"
    yield f"bare student {ms['student']}, bare teacher {ms['teacher']}, step {ms['cached step']}"
    yield (
        f"data wait {shares['data wait']}; loss {ms['loss']} = {shares['loss']} (cross-entropy "
        f"{ms['cross-entropy']}); lookup {ms['lookup']} = {shares['lookup']}, "
        f"{result['kept classes']:.0f} classes a view"
    )
    bare, without = (result[f"cached / labels, {how}"] for how in ("bare", "without lookup"))
    yield f"cached / labels: bare {bare:.4f}, without lookup {without:.3f}"
    for bar, holds in result["bars"].items():
        yield f"{'PASS' if holds else 'FAIL'}  {bar}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    todo = [(pair, torch.device("cpu")) for pair in CPU]
    if torch.cuda.is_available():
        todo += [(pair, torch.device("cuda")) for pair in GPU]
    results: dict[str, Any] = {}
    for pair, device in todo:
        with tempfile.TemporaryDirectory() as folder:
            name = f"{pair.name}, {device.type}"
            results[name] = measure(prepare(pair, device, Path(folder)), options.repeats)
        print("\n".join(table(name, results[name])), flush=True)
    results |= {"repeats": options.repeats, "machine": machine(LIBRARIES)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
