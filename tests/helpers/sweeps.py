"""Small grids, their sweeps opened or run, and what is in the folders of their students."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.helpers.outcome import Outcome
from tests.helpers.stage1 import KDCACHE
from train.data.inputs import open_inputs
from train.sweep import grid
from train.sweep import runner as sweeps

Command = Callable[..., Outcome]


CPU = torch.device("cpu")


SMALL = """
base = "digits"
epochs = 1
views_per_epoch = 1
batch_size = 50
[grid]
student = ["test_efficientnet", "test_resnet"]
temperature = [1.0, 4.0]
"""


SIZES = """
base = "digits"
epochs = 3
views_per_epoch = 1
batch_size = 25
student = "test_vit"
drop_path = 0.2
[grid]
size = [16, 0, 48]
"""


def opened(made: Path, text: Path, out: Path, **more: Any) -> sweeps.Sweep:
    inputs = open_inputs(made, None)
    return sweeps.Sweep(tuple(grid.load(str(text))), inputs, out, CPU, **more)


def sweep_command(folder: Path, made: Path | str, out: Path, *more: str) -> list[str]:
    return [
        KDCACHE, "sweep", str(folder / "grid.toml"), "--cache", str(made), "--out", str(out), *more
    ]  # fmt: skip


def results(out: Path) -> dict[str, int]:
    """When each finished run was finished."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/result.json")}


def steps(out: Path) -> dict[str, list[int]]:
    """The steps in each run's log: each of them once, or something was done twice."""
    return {
        p.parent.name: [json.loads(line)["step"] for line in p.read_text().splitlines()]
        for p in out.glob("*/steps.jsonl")
    }


def same_weights(a: Path, b: Path) -> Iterator[bool]:
    for path in sorted(b.glob("*/model*/model.safetensors")):
        mine, theirs = load_file(a / path.relative_to(b)), load_file(path)
        yield all(torch.equal(mine[key], theirs[key]) for key in theirs)
