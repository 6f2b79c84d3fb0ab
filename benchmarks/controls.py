"""Controls of distillation: the gain over labels, and its loss with wrong targets or views.

    python -m benchmarks.controls digits|mnist5k|fashion [--transfer 100] [--seeds 5]
        [--views plain,mixed] [--arms labels,cached] [--source DIR] [--teacher DIR]
        [--out FILE.png] [--json FILE]

Data sets and their splits are those of `benchmarks.datasets`: students see the transfer images
alone; "choose" decides the learning rate and, where the data set leaves it open, the temperature,
separately for labels and targets; "validation" is what is reported, and decides nothing.

The teacher is trained by `pipeline.demo`; students are those of the recipe digits, on plain views
and with the mixing of VanillaKD's A2. Every arm has the same steps, starts, views and order:

* "labels": cross-entropy with the labels, of both partners where views are mixed.
* "online": the teacher in the loop.
* "cached": the stored targets.
* "another view": cached targets of the next view of the same image (mixed: with another partner).
* "next image": cached targets of the same view of the next row of the sample table.
* "clean image": for every view, the teacher's targets of the image itself, neither cropped nor
  mixed, as in a cache without views.

All arms with targets take the rate and the temperature of "cached". Gains are paired by seed; a
standard error is the deviation of the gains over √seeds.

Shapes: V views, N samples.
"""

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import datasets
from benchmarks.datasets import DATASETS
from benchmarks.machine import machine
from benchmarks.online import CPU, SETTINGS, stored, train
from cache_tools.data.open import open_images
from cache_tools.targets.codec import DecodedTargets
from pipeline import recipe as recipes
from pipeline.run import run as make
from pipeline.teacher.online import TeacherFn, online
from train import recipe as training
from train.data.inputs import Inputs, open_inputs

RATES = (2e-3, 4e-3, 8e-3)
CHOOSING_SEEDS = (100, 101)
EPOCHS, SHOWN = 10, 1000
"""Epochs of a student, and the views it is shown in each."""
CLEAN = ("views.center_crop=1.0", "views.hflip=0.0", "views.degrees=0.0", "views.translate=0.0")
ARMS = ["labels", "online", "cached", "another view", "next image", "clean image"]
ENOUGH = 2.0
"""Standard errors of a gain that counts."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    mode: str
    """Mode of the recipe."""
    words: DecodedTargets | None = None
    """[V, N, …] targets in place of the cache's."""


@dataclass(frozen=True)
class Setting:
    """Settings chosen on the choosing split."""

    rate: float
    """Learning rate."""
    temperature: float
    """T of the soft targets; of no meaning for labels."""

    def __str__(self) -> str:
        return f"lr {self.rate:g}, T {self.temperature:g}"


@dataclass(frozen=True)
class Trial:
    """Cache and data that the arms of one kind of views share."""

    reported: Inputs
    """Cache and data, validated on the split that is reported."""
    choosing: Inputs
    """The same, validated on the split that chooses."""
    ask: TeacherFn
    """The teacher in the loop."""
    arms: dict[str, Arm]
    temperatures: tuple[float, ...]
    """Those that are tried."""


def rolled(words: DecodedTargets, axis: int) -> DecodedTargets:
    """[V, N, …] words, each one's replaced by those of the next view (0) or row (1)."""
    return DecodedTargets(
        *(np.roll(getattr(words, f.name), -1, axis) for f in fields(DecodedTargets))
    )


def repeated(words: DecodedTargets, count: int) -> DecodedTargets:
    """[1, N, …] words for `count` views."""
    return DecodedTargets(
        *(np.repeat(getattr(words, f.name), count, axis=0) for f in fields(DecodedTargets))
    )


def trial(
    data: Path, name: str, teacher: Path, work: Path, changes: tuple[str, ...], size: int
) -> Trial:
    """Make the cache of one kind of views, of `size` images, and the targets of its controls."""
    shared = (*DATASETS[name].views, f"dataset.num_samples={size}")

    def cache(file: str, changes: tuple[str, ...]) -> Inputs:
        recipe = recipes.load("digits", (*shared, *changes))
        make(recipe, str(data), str(teacher), work / file, "cpu")
        return open_inputs(work / file, None)

    inputs, clean = cache("views.zarr", changes), cache("clean.zarr", ("num_views=1", *CLEAN))
    words = stored(inputs.store)
    arms = {
        "labels": Arm("labels"),
        "online": Arm("online"),
        "cached": Arm("kd"),
        "another view": Arm("kd", rolled(words, 0)),
        "next image": Arm("kd", rolled(words, 1)),
        "clean image": Arm("kd", repeated(stored(clean.store), inputs.store.num_views)),
    }
    choose = open_images(f"{data}/{name}-choose-*.tar", "validation")
    ask = online(inputs.store, str(teacher), CPU)
    temperatures = DATASETS[name].temperatures
    return Trial(inputs, replace(inputs, validation=choose), ask, arms, temperatures)


def top1(at: Trial, inputs: Inputs, arm: Arm, setting: Setting, seed: int) -> float:
    """Train a student of an arm; its accuracy in percent."""
    changes = {
        "mode": arm.mode,
        "lr": setting.rate,
        "temperature": setting.temperature,
        "epochs": EPOCHS,
        "views_per_epoch": max(1, SHOWN // len(inputs.images)),
        "seed": seed,
    }
    recipe = training.load("digits", [f"{key}={value}" for key, value in changes.items()])
    return train(recipe, inputs, arm.words, at.ask if arm.mode == "online" else None).top1


def choose(at: Trial, arm: Arm) -> dict[Setting, float]:
    """Mean accuracy on the choosing split, with every setting."""

    def mean(setting: Setting) -> float:
        return statistics.fmean(top1(at, at.choosing, arm, setting, s) for s in CHOOSING_SEEDS)

    temperatures = at.temperatures[-1:] if arm.mode == "labels" else at.temperatures
    return {one: mean(one) for one in (Setting(r, t) for t in temperatures for r in RATES)}


def study(at: Trial, seeds: int, arms: list[str]) -> dict[str, Any]:
    """Choose the settings, then train the arms."""
    tried = {arm: choose(at, at.arms[arm]) for arm in ("labels", "cached")}
    best = {arm: max(found, key=lambda setting: found[setting]) for arm, found in tried.items()}
    shown = {a: {str(one): value for one, value in found.items()} for a, found in tried.items()}
    print(f"choosing: {json.dumps(shown)}", file=sys.stderr, flush=True)
    reached: dict[str, list[float]] = {}
    for name in arms:
        setting = best["labels" if name == "labels" else "cached"]
        reached[name] = [top1(at, at.reported, at.arms[name], setting, s) for s in range(seeds)]
        print(f"{name}: {reached[name]}", file=sys.stderr, flush=True)
    gains = {
        f"{a} - {b}": gain(reached[a], reached[b])
        for b in ("labels", "cached")
        for a in reached
        if a != b
    }
    chosen = {arm: str(setting) for arm, setting in best.items()}
    return {"top1": reached, "gains": gains, "chosen": chosen, "tried": shown, "bars": bars(gains)}


def gain(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Mean of the gains seed by seed, and its standard error."""
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, error = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
    return {"mean": mean, "error": error, "in errors": mean / max(error, 1e-9)}


def bars(gains: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Bars of the study, each with True where it holds."""
    helps, wrong = gains["cached - labels"], gains.get("next image - cached")
    held = {f"cached over labels by more than {ENOUGH:g} s.e.": helps["in errors"] > ENOUGH}
    if wrong is not None:
        bar = f"targets of the next image below cached by more than {ENOUGH:g} s.e."
        held[bar] = wrong["in errors"] < -ENOUGH
    return held


def table(name: str, result: dict[str, Any]) -> Iterator[str]:
    """One kind of views in Markdown."""
    yield f"| {name} views | top-1, % | over labels | over cached | by seed |"
    yield "|---|---|---|---|---|"
    for arm, values in result["top1"].items():
        spread = f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        over = " | ".join(_gain(result["gains"].get(f"{arm} - {b}")) for b in ("labels", "cached"))
        yield f"| {arm} | {spread} | {over} | {' '.join(f'{v:.1f}' for v in values)} |"
    yield ""
    for bar, holds in result["bars"].items():
        yield f"{'PASS' if holds else 'FAIL'}  {bar}"
    yield f"chosen: {result['chosen']}\n"


def _gain(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:+.1f} ± {found['error']:.1f} ({found['in errors']:+.1f} s.e.)"


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Every student of every arm, a panel per kind of views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(9.6, 4.2), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (name, result) in zip(panels[0], results.items(), strict=True):
        for x, values in enumerate(result["top1"].values()):
            axes.scatter([x] * len(values), values, color=f"C{x}", alpha=0.6, zorder=2)
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            axes.errorbar(x, mean, spread, fmt="D", color=f"C{x}", capsize=6, zorder=3)
        arms = [arm.replace(" ", "\n") for arm in result["top1"]]
        axes.set_xticks(range(len(arms)), arms)
        axes.set_title(f"{title}, {name} views")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("top-1 accuracy, %")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("--transfer", type=int, default=100, help="images that students see")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=_words, default=list(SETTINGS))
    parser.add_argument("--arms", type=_words, default=ARMS)
    parser.add_argument("--source", type=Path, help="where Fashion-MNIST's files lie")
    parser.add_argument("--teacher", type=Path, help="keep the teacher here, or take it from here")
    parser.add_argument("--out", type=Path, help="default: docs/studies/controls-DATASET.png")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("a standard error wants two seeds")
    if not {"labels", "cached"} <= set(options.arms) <= set(ARMS):
        parser.error(f"--arms are labels, cached and any of {', '.join(ARMS)}")
    if not set(options.views) <= set(SETTINGS):
        parser.error(f"--views are {' or '.join(SETTINGS)}")
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    name, size, kinds = options.dataset, options.transfer, {}
    results: dict[str, Any] = {"dataset": name, "seeds": options.seeds, "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        data, teacher = Path(folder) / "data", options.teacher or Path(folder) / "teacher"
        results["splits"] = datasets.write(name, data, size, options.source)
        results["teacher top1"] = datasets.teacher_of(name, data, teacher)
        torch.set_num_threads(1)
        print(f"{name}: {results['splits']}, teacher {results['teacher top1']:.1f} % top-1\n")
        for kind in options.views:
            work = Path(folder) / kind
            at = trial(data, name, teacher, work, SETTINGS[kind], size)
            kinds[kind] = study(at, options.seeds, options.arms)
            print("\n".join(table(kind, kinds[kind])), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results | kinds, indent=2) + "\n")
    draw(kinds, name, options.out or Path(f"docs/studies/controls-{name}.png"))


if __name__ == "__main__":
    main()
