"""Students of several sizes from one decode of each picture are those that train alone."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import NonFinite, UsageError
from cache_tools.runtime import threads
from cache_tools.runtime.signals import StopRequest
from tests.helpers.training import train_together
from train import recipe as recipes
from train import run_dir
from train.data import create_loader
from train.data.inputs import Inputs
from train.data.schedule import Schedule
from train.recipe import TrainRecipe
from train.sweep import cohorts
from train.sweep.cohorts import MemoryEstimate
from train.sweep.grid import Student
from train.trainer import loop

CPU = torch.device("cpu")
FAST = ["epochs=2", "views_per_epoch=1", "batch_size=20", "drop=0.2"]
STUDENTS = {
    "half": ["size=16", "drop_path=0.3"],
    "own": ["temperature=2.0"],
    "named": ["size=32", "model_ema_decay=0.0"],
    "large": ["size=48", "student=test_vit", "opt=lamb"],
    "rising": ["size=[[0.0, 24], [0.5, 48]]", "epochs=4"],
    "short": ["size=40", "epochs=1"],
    "seventy": ["size=72", "epochs=1"],
}
SIZES = [[16, 24, 32, 40, 48, 72], [16, 24, 32, 48], [48], [48]]
"""Sizes at which the views of each epoch are rendered."""


def recipe_of(name: str) -> TrainRecipe:
    return recipes.load("digits", [*FAST, *STUDENTS[name]])


def cohort(names: Sequence[str], inputs: Inputs, folder: Path) -> list[dict[str, Any] | NonFinite]:
    return train_together([(folder / name, recipe_of(name)) for name in names], inputs)


@pytest.fixture(scope="module")
def alone(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every student by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for name in STUDENTS:
        cohort([name], inputs, folder)
    return folder


def assert_equal(a: Path, b: Path) -> None:
    """Weights, and the losses and rates of each row, are the same."""
    paths = sorted(b.glob("model*/model.safetensors"))
    assert paths
    for path in paths:
        mine, theirs = load_file(a / path.relative_to(b)), load_file(path)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), path
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")}
            for row in map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
        ]
        for folder in (a, b)
    ]
    assert rows[0] == rows[1]


def test_each_student_is_the_one_that_trains_alone(
    inputs: Inputs, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule beside fixed sizes, more and fewer epochs; no size that nobody is shown."""
    made, sized = [], loop.Batches.sized

    def seen(self: Any, *arguments: Any) -> Any:
        for batches in sized(self, *arguments):
            made.append([*batches])
            yield batches

    monkeypatch.setattr(loop.Batches, "sized", seen)
    found = cohort([*STUDENTS], inputs, tmp_path)
    assert made == [sizes for sizes in SIZES for _ in range(5)]
    for name, result in zip(STUDENTS, found, strict=True):
        assert_equal(tmp_path / name, alone / name)
        assert not isinstance(result, NonFinite)
        other = json.loads((alone / name / "result.json").read_text())
        clocks = ("images_per_second", "data_wait", "seconds", "cost_seconds")
        assert {k: v for k, v in result.items() if k not in clocks} == {
            k: v for k, v in other.items() if k not in clocks
        }


def test_a_picture_is_decoded_once_for_all_sizes(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, real = Counter[int](), ViewRenderer.render_many

    def counted(self: ViewRenderer, row_P: np.ndarray, *more: Any) -> None:
        decoded.update(row_P.tolist())
        real(self, row_P, *more)

    monkeypatch.setattr(ViewRenderer, "render_many", counted)
    batches = loop.Batches.of_recipe(recipe_of("own"), inputs, CPU)
    several = [*batches.sized(0, 0, lambda epoch: (16, 32, 48))]
    assert len(decoded) == 100
    assert set(decoded.values()) == {1}
    for size in (16, 32, 48):
        recipe = replace(recipe_of("own"), size=size)
        for made, other in zip(
            several, loop.Batches.of_recipe(recipe, inputs, CPU).rendered(0), strict=True
        ):
            mine = made[size]
            assert np.array_equal(mine.pictures, other.pictures)
            for name in ("partner_at_B", "lam_B", "cut_B4", "label_B", "partner_label_B"):
                assert np.array_equal(getattr(mine, name), getattr(other, name)), name
            assert np.array_equal(mine.targets.probability_BK, other.targets.probability_BK)
    assert decoded == Counter(dict.fromkeys(decoded, 4))


def test_a_cohort_that_is_stopped_after_every_step_goes_on_exactly(
    inputs: Inputs, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another size joins those that are half way."""
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    names = ["half", "rising"]
    for _ in range(7):
        with pytest.raises(KeyboardInterrupt):
            cohort(names, inputs, tmp_path)
    monkeypatch.setattr(StopRequest, "requested", False)
    names.append("large")
    cohort(names, inputs, tmp_path)
    for name in names:
        assert_equal(tmp_path / name, alone / name)


def test_small_views_have_one_torch_thread_beside_large_ones(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as they have alone, since the order of a sum depends on it."""
    seen: dict[int, set[int]] = {}
    runs = []
    update = loop.StudentTrainer.update

    def noted(self: Any) -> None:
        seen.setdefault(self.size, set()).add(torch.get_num_threads())
        update(self)

    monkeypatch.setattr(loop.StudentTrainer, "update", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for size in (40, 72):
            recipe = recipes.load("digits", [*FAST, "epochs=1", "batch_size=50", f"size={size}"])
            run_dir.init_run(tmp_path / f"{size}", recipe, inputs, fresh=False)
            runs.append((tmp_path / f"{size}", recipe))
        loop.train_cohort(runs, inputs, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {40: {1}, 72: {min(2, threads.cpu_count())}}


def student(name: str, **values: Any) -> Student:
    return Student(name, replace(recipes.load("digits"), **values), values)


def test_students_of_several_sizes_form_a_cohort() -> None:
    """In the order of their sizes, within a memory that has a batch at each of them."""
    sizes = {"large": 48, "small": 16, "own": 0, "rising": ((0.0, 16), (0.5, 40))}
    students = [
        student(f"{n}{t}", size=s, temperature=t) for t in (1.0, 4.0) for n, s in sizes.items()
    ]
    needs = {s.name: MemoryEstimate(1000, 100, 50, 0.1, 10.0, "cpu") for s in students}

    def grouped(budget: float, most: int = 0) -> list[list[str]]:
        found = cohorts.group(students, needs, budget, 32, most)
        return [[one.name.rstrip(".0") for one in cohort] for cohort in found]

    assert grouped(1e9) == [
        ["small1", "small4", "rising1", "rising4", "own1", "own4", "large1", "large4"]
    ]
    assert grouped(1e9, 2) == [
        ["small1", "small4"], ["rising1", "rising4"], ["own1", "own4"], ["large1", "large4"]
    ]  # fmt: skip
    batch = 4 * 3 * 64 * 4 * (16**2 + 32**2 + 40**2 + 48**2)  # at the end of the run
    assert len(grouped(batch + 8 * 100 + 51)) == 1
    assert len(grouped(batch + 8 * 100 + 49)) == 2
    assert cohorts.decoded_apart(students, 32) == ""


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"batch_size": 32}, "batch_size differs"),
        ({"seed": 1}, "seed differs"),
        ({"seed": 1, "view_order": "shuffle"}, "view_order differs, seed differs"),
        ({"size": ((0.0, 16), (0.5, 48, 32))}, "batch_size differs"),
        ({"tail": "zero"}, "tail=zero differs"),
        ({"compile": True}, "compile differs"),
    ],
)
def test_students_that_do_not_share_are_named_with_the_reason(
    values: dict[str, Any], why: str
) -> None:
    students = [student("a", size=16), student("b", **({"size": 48} | values))]
    needs = {s.name: MemoryEstimate(1000, 100, 50, 0.1, 10.0, "cpu") for s in students}
    assert [len(one) for one in cohorts.group(students, needs, 1e9, 32)] == [1, 1]
    assert cohorts.decoded_apart(students, 32) == (
        f"students of 16, 48 px do not all share the decode of a picture: {why}"
    )
    every = [student(f"{s}", size=s, **v) for s in (16, 48) for v in ({}, {"batch_size": 32})]
    assert cohorts.decoded_apart(every, 32) == ""  # each of two streams has both sizes


def test_ffcvs_loader_has_one_size(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    students = [student("a", size=16), student("b", size=48), student("c", size=48, lr=1e-4)]
    needs = {s.name: MemoryEstimate(1000, 100, 50, 0.1, 10.0, "cpu") for s in students}
    found = cohorts.group(students, needs, 1e9, 32, of_one_size=["a", "b", "c"])
    assert [len(one) for one in found] == [1, 2]
    assert cohorts.decoded_apart(students, 32, ["a", "b", "c"]).endswith(
        ": FFCV's loader makes views of one size"
    )
    monkeypatch.setattr(create_loader, "choose", lambda *_: ("ffcv", "set in the recipe"))
    schedules = [Schedule(inputs.store, 1, 20, 0, size=size) for size in (16, 48)]
    named, auto = (recipes.load("digits", [f"loader={name}"]) for name in ("ffcv", "auto"))
    with pytest.raises(UsageError, match="loader=ffcv renders views of one size"):
        create_loader.create(named, inputs, schedules[0], others=schedules[1:])
    loader = create_loader.create(auto, inputs, schedules[0], others=schedules[1:])
    assert [*next(loader.sized(0))] == [16, 48]
