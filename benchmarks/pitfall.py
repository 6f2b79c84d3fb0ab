"""The small-data pitfall at our scale: gains of dkd and dist over plain kd as data grows.

    python -m benchmarks.pitfall [--source DIR] [--teacher DIR] [--seeds 5]
        [--out docs/studies/pitfall.png] [--json FILE]

VanillaKD (Hao et al., 2023) found that losses designed on small data sets beat plain KD there, and
that the gap closes with more data and stronger augmentation. Here: Fashion-MNIST
(`benchmarks.datasets`), transfer sets of 96, 960 and 9,600 images, all of them the teacher's, each
with weak views (crops of at least 80 % of the area, mirrored) and strong ones (those of the study
`benchmarks.controls`, RandAugment and the mixing of VanillaKD's A2).

Every student takes the same 150 steps of 64 views, no view twice: 100, 10 or 1 of each image, at
T = 4 with cross-entropy with the labels beside the loss. Each loss has two sets of weights and two
learning rates, chosen by kind of views at the middle size, on images that are not reported on, with
a seed that is not either:

* "kd": KL; the cross-entropy with weight 1, or without it.
* "dkd": α = 1 and β = 8, as its authors' code has it for CIFAR-100 (Zhao et al., 2022), or β = 2.
* "dist": β = γ = 2 or 1 (Huang et al., 2022).

Gaps to kd are paired by seed.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import datasets
from benchmarks.controls import gain
from benchmarks.machine import machine
from benchmarks.online import MIXING, train
from cache_tools.data.open import open_images
from pipeline import recipe as recipes
from pipeline.run import run as make
from train import recipe as training
from train.data.inputs import Inputs, open_inputs

NAME = "fashion"
SIZES = (96, 960, 9600)
MIDDLE = SIZES[1]
VIEWS = {
    "weak": ("views.scale=[0.8,1.0]", "views.degrees=0.0", "views.translate=0.0"),
    "strong": ("views.auto_augment=rand-m7-mstd0.5", *MIXING),
}
LOSSES = {
    "kd": (("task_loss_weight=1.0",), ("task_loss_weight=0.0",)),
    "dkd": (
        ("task_loss_weight=1.0", "loss=dkd", "dkd_beta=8.0"),
        ("task_loss_weight=1.0", "loss=dkd", "dkd_beta=2.0"),
    ),
    "dist": (
        ("task_loss_weight=1.0", "loss=dist", "dist_beta=2.0", "dist_gamma=2.0"),
        ("task_loss_weight=1.0", "loss=dist", "dist_beta=1.0", "dist_gamma=1.0"),
    ),
}
RATES = (4e-3, 8e-3)
CHOOSING_SEED = 100
Setting = tuple[str, ...]
"""Overrides of the recipe digits."""


@dataclass(frozen=True)
class Cell:
    """One size of the transfer set with one kind of views."""

    reported: Inputs
    """Cache and data, validated on the split that is reported."""
    choosing: Inputs
    """The same, validated on the split that chooses."""
    size: int
    """Images of the transfer set."""


def cell(size: int, kind: str, teacher: Path, work: Path, source: Path | None) -> Cell:
    """Write the transfer set, make its cache."""
    data = work / f"data-{size}"
    if not data.exists():
        datasets.write(NAME, data, size, source)
    cache = work / f"{kind}-{size}.zarr"
    changes = (
        *datasets.DATASETS[NAME].views,
        f"dataset.num_samples={size}",
        f"num_views={SIZES[-1] // size}",
        *VIEWS[kind],
    )
    make(recipes.load("digits", changes), str(data), str(teacher), cache, "cpu")
    inputs = open_inputs(cache, None)
    choose = open_images(f"{data}/{NAME}-choose-*.tar", "validation")
    return Cell(inputs, replace(inputs, validation=choose), size)


def top1(at: Cell, inputs: Inputs, setting: Setting, seed: int) -> float:
    """Train a student; its accuracy in percent."""
    shared = {"epochs": 1, "views_per_epoch": SIZES[-1] // at.size, "temperature": 4.0}
    overrides = [f"{key}={value}" for key, value in {**shared, "seed": seed}.items()]
    return train(training.load("digits", [*overrides, *setting]), inputs).top1


def choose(at: Cell) -> dict[str, dict[Setting, float]]:
    """Accuracy of each loss with each setting on the choosing split."""
    return {
        loss: {
            (*weights, f"lr={rate}"): top1(at, at.choosing, (*weights, f"lr={rate}"), CHOOSING_SEED)
            for weights in variants
            for rate in RATES
        }
        for loss, variants in LOSSES.items()
    }


def study(at: Cell, chosen: dict[str, Setting], seeds: int) -> dict[str, Any]:
    """Train with all losses."""
    reached = {
        loss: [top1(at, at.reported, setting, seed) for seed in range(seeds)]
        for loss, setting in chosen.items()
    }
    gaps = {loss: gain(reached[loss], reached["kd"]) for loss in ("dkd", "dist")}
    return {"top1": reached, "gaps": gaps}


def table(results: dict[str, dict[int, dict[str, Any]]]) -> Iterator[str]:
    """All cells in Markdown."""
    yield "| views | images | kd, % | dkd, % | dist, % | dkd - kd | dist - kd |"
    yield "|---|---|---|---|---|---|---|"
    for kind, sizes in results.items():
        for size, found in sizes.items():
            reached = " | ".join(
                f"{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f}"
                for v in found["top1"].values()
            )
            gaps = " | ".join(
                f"{g['mean']:+.1f} ± {g['error']:.1f} ({g['in errors']:+.1f} s.e.)"
                for g in found["gaps"].values()
            )
            yield f"| {kind} | {size:,} | {reached} | {gaps} |"


def draw(results: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Accuracies above, gaps to kd below; a column per kind of views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        2, len(results), figsize=(9.6, 5.6), layout="constrained", sharex=True, sharey="row"
    )
    for (kind, sizes), (above, below) in zip(results.items(), grid.T, strict=True):
        for number, loss in enumerate(LOSSES):
            values = [found["top1"][loss] for found in sizes.values()]
            means = [statistics.fmean(v) for v in values]
            spread = [statistics.stdev(v) for v in values]
            style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "capsize": 4}
            above.errorbar(list(sizes), means, spread, label=loss, **style)
            if loss != "kd":
                gaps = [found["gaps"][loss] for found in sizes.values()]
                errors = [g["error"] for g in gaps]
                label = f"{loss} - kd, ± s.e."
                below.errorbar(list(sizes), [g["mean"] for g in gaps], errors, label=label, **style)
        above.set(title=f"{kind} views", xscale="log")
        below.axhline(0.0, color="C0", linewidth=1)
        below.set_xlabel("images of the transfer set")
        for axes in (above, below):
            axes.legend(frameon=False)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("top-1 accuracy, %")
    grid[1, 0].set_ylabel("gap, points")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, help="where Fashion-MNIST's files lie")
    parser.add_argument("--teacher", type=Path, help="keep the teacher here, or take it from here")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/studies/pitfall.png"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("a standard error wants two seeds")
    logging.getLogger("kdcache").setLevel(logging.WARNING)
    results: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in VIEWS}
    facts: dict[str, Any] = {"seeds": options.seeds, "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        teacher = options.teacher or Path(folder) / "teacher"
        data = Path(folder) / f"data-{SIZES[-1]}"
        facts["splits"] = datasets.write(NAME, data, SIZES[-1], options.source)
        facts["teacher top1"] = datasets.teacher_of(NAME, data, teacher)
        torch.set_num_threads(1)
        for kind in VIEWS:
            cells = {n: cell(n, kind, teacher, Path(folder), options.source) for n in SIZES}
            tried = choose(cells[MIDDLE])
            chosen = {loss: max(found, key=found.__getitem__) for loss, found in tried.items()}
            facts[f"tried on {kind} views"] = {
                loss: {" ".join(setting): value for setting, value in found.items()}
                for loss, found in tried.items()
            }
            print(json.dumps(facts), file=sys.stderr, flush=True)
            for size in SIZES:
                results[kind][size] = study(cells[size], chosen, options.seeds)
                found = json.dumps(results[kind][size])
                print(f"{kind}, {size}: {found}", file=sys.stderr, flush=True)
                if options.json:
                    options.json.write_text(json.dumps(facts | results, indent=2) + "\n")
    print("\n".join(table(results)))
    draw(results, options.out)


if __name__ == "__main__":
    main()
