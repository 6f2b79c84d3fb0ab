"""Schedules of sizes: phases of a run, resumed exactly, each with the batches of its size."""

import json
import math
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kdcache as api
from cache_tools.data.images import ImageDataset
from cache_tools.errors import NonFinite, RecipeError, UsageError
from cache_tools.runtime.signals import StopRequest
from cache_tools.store.cache import Cache
from tests.helpers import patched
from tests.helpers.training import train_together
from train import recipe as recipes
from train import run_dir
from train.data import create_loader
from train.data.inputs import Inputs
from train.data.schedule import Schedule
from train.loss.task import CachedDistillationTask
from train.recipe import Phase, TrainRecipe
from train.sweep import cohorts
from train.sweep.cohorts import MemoryEstimate
from train.sweep.grid import Student
from train.trainer import loop, plan, reserve
from train.trainer.student import StudentTrainer

CPU = torch.device("cpu")
SIZES = "size=[[0.0, 16], [0.33, 24, 25], [0.66, 48]]"
WORDS = ["epochs=3", "views_per_epoch=1", "batch_size=50", "drop=0.2", SIZES]


def trained(recipe: TrainRecipe, inputs: Inputs, out: Path) -> dict[str, Any]:
    run_dir.init_run(out, recipe, inputs, fresh=False)
    return loop.train(recipe, inputs, out, CPU)


def test_a_schedule_is_resumed_exactly_in_each_phase(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each of its eight steps, and the undisturbed student nevertheless."""
    rates, shapes, step = [], [], torch.optim.AdamW.step

    def recorded(self: Any, *a: Any, **b: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *a, **b)

    recipe = recipes.load("digits", [*WORDS, "lr=1.0", "precision=bf16", "clip_grad=0.001"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", recorded)
        move = loop.Batches.move

        def moved(self: Any, *arguments: Any) -> Any:
            shapes.append(tuple((batch := move(self, *arguments)).pixels.shape[::2]))
            return batch

        patch.setattr(loop.Batches, "move", moved)
        result = trained(recipe, inputs, tmp_path / "whole")
    tried, *shapes = shapes
    assert tried == (50, 48)
    assert shapes == [(50, 16)] * 2 + [(25, 24)] * 4 + [(50, 48)] * 2
    # rates go by the share of the run, not by the number of updates
    done = [0, 1, 2, 2.5, 3, 3.5, 4, 5]
    assert rates[1:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * d / 6) for d in done])
    assert (result["size"], result["eval_size"], result["images"]) == (48, 48, 300)
    rows = (tmp_path / "whole/steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 6, 8]

    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    stops = 0
    while not (tmp_path / "stopped/result.json").exists():
        try:
            trained(recipe, inputs, tmp_path / "stopped")
        except KeyboardInterrupt:
            stops += 1
    assert stops == 8
    a, b = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UsageError, match=r"recipe\.size: "):
        run_dir.init_run(tmp_path / "whole", replace(recipe, size=16), inputs, fresh=False)


KILLED = """
from train.trainer.student import StudentTrainer

at = tuple(map(int, settings))
end_step = StudentTrainer.end_step

def killed(self, losses):
    end_step(self, losses)
    if (self.progress.epoch, self.progress.step) == at:
        os.kill(os.getpid(), signal.SIGKILL)

StudentTrainer.end_step = killed
"""
"""`kdcache` that is killed after a step of the training, before its checkpoint."""


@pytest.mark.slow
def test_a_schedule_killed_in_each_phase_goes_on_exactly(
    digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    words = [*WORDS, "checkpoint_minutes=0.0", "--device=cpu"]
    words = ["train", "digits", "--cache", str(digits_cache), "--data", str(digits), *words]

    def run(out: str, epoch: int, step: int) -> subprocess.CompletedProcess[str]:
        return patched.run(KILLED, [epoch, step], [*words, "--out", tmp_path / out])

    assert run("whole", 9, 9).returncode == 0
    for at in ((0, 2), (1, 3), (2, 1)):  # of 2, 4 and 2 steps at 16, 24 and 48 px
        assert run("killed", *at).returncode == -signal.SIGKILL
    last = run("killed", 9, 9)
    assert last.returncode == 0, last.stderr
    assert "going on at epoch 2, step 0" in last.stderr
    a, b = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_schedule_that_does_not_fit_ends_before_its_first_step(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest size is that of the last epoch; weights and batch statistics do not change."""
    recipe, conv = recipes.load("digits", WORDS), torch.nn.functional.conv2d

    def little_memory(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if x.shape[0] * x.shape[-1] ** 2 >= 50 * 48**2:
            raise MemoryError("no room for 50 x 48 px")
        return conv(x, *arguments)

    monkeypatch.setattr(torch.nn.functional, "conv2d", little_memory)
    with pytest.raises(UsageError, match="the device is too small for test_efficientnet"):
        trained(recipe, inputs, tmp_path / "run")
    assert not (tmp_path / "run/checkpoint.pt").exists()
    assert not (tmp_path / "run/steps.jsonl").exists()


def cohort(inputs: Inputs, out: Path, device: str, *more: str) -> list[dict[str, Any] | NonFinite]:
    """Two students, one of whose schedules ends smaller than it was."""
    both = [recipes.load("digits", [*WORDS, *more])]
    both.append(replace(both[0], size=((0.0, 32.0), (0.33, 40.0, 25.0), (0.66, 24.0, 50.0))))
    return train_together([(out / str(n), one) for n, one in enumerate(both)], inputs, device)


def test_the_largest_step_is_tried_as_it_will_be_made(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the loss, targets of their width, and the optimizer's state of both students."""
    forward, tried, real = CachedDistillationTask.forward, [], []

    def watched(students: list[StudentTrainer], *rest: Any) -> None:
        def recorded(task: CachedDistillationTask, x: torch.Tensor, targets: Any) -> Any:
            whole = [
                len(one.optimizer.state) == len([*one.module.parameters()]) for one in students
            ]
            tried.append((tuple(x.shape), tuple(targets.probability.shape), whole))
            return forward(task, x, targets)

        with monkeypatch.context() as patch:
            patch.setattr(CachedDistillationTask, "forward", recorded)
            reserve.reserve(students, *rest)
        assert not any(one.optimizer.state for one in students)

    def recorded(task: CachedDistillationTask, x: torch.Tensor, targets: Any) -> Any:
        real.append((tuple(x.shape), tuple(targets.probability.shape)))
        return forward(task, x, targets)

    monkeypatch.setattr(loop, "reserve", watched)
    monkeypatch.setattr(CachedDistillationTask, "forward", recorded)
    cohort(inputs, tmp_path / "tried", "cpu")
    assert tried == [(*shapes, [True, True]) for shapes in real[-2:]]
    assert [shape for shape, _, _ in tried] == [(50, 3, 48, 48), (50, 3, 24, 24)]

    monkeypatch.setattr(loop, "reserve", lambda *_: None)
    cohort(inputs, tmp_path / "untried", "cpu")
    for number in "01":
        a, b = (
            load_file(tmp_path / name / number / "model/model.safetensors")
            for name in ("tried", "untried")
        )
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_largest_step_is_tried_in_compiled_code(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take less memory: the trial of a student that fits does not end the run."""
    compiled: list[tuple[int, ...]] = []

    def compile_(task: CachedDistillationTask, dynamic: bool | None) -> Any:
        def forward(x: torch.Tensor, targets: Any) -> Any:
            compiled.append(tuple(x.shape))
            return task(x, targets)

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    trained(recipes.load("digits", [*WORDS, "compile=true"]), inputs, tmp_path / "run")
    assert compiled[0] == compiled[-1] == (50, 3, 48, 48)
    assert compiled[1] != compiled[0]


@pytest.mark.gpu
def test_the_trial_takes_the_memory_of_the_training(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []

    def watched(*arguments: Any) -> None:
        torch.cuda.reset_peak_memory_stats()
        reserve.reserve(*arguments)
        peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    monkeypatch.setattr(loop, "reserve", watched)
    cohort(inputs, tmp_path, "cuda", "student=resnet50")
    assert 0.8 < peaks[0] / torch.cuda.max_memory_allocated() < 1.25


def test_batches_of_a_schedule(digits_cache: Path, digits: Path, images: ImageDataset) -> None:
    """Each phase has the views of its epochs, as a run of this size alone would have them."""
    options = {"batch_size": 50, "seed": 3, "epochs": 4, "device": "cpu"}
    sizes = [[0, 16], [0.5, 32, 20]]
    batches = api.Batches(digits_cache, digits, size=sizes, **options)
    store = Cache.open(digits_cache)
    for epoch, (size, batch) in enumerate([(16, 50), (16, 50), (32, 20), (32, 20)]):
        assert (batches.epoch, len(batches)) == (epoch, 100 // batch)
        schedule = Schedule(store, 1, batch, 3, size=size)
        own = create_loader.native(store, images, schedule, 1).epoch(epoch)
        for made, other in zip(batches.rendered(epoch), own, strict=True):
            assert np.array_equal(made.pictures, other.pictures)
        for step, (pixels, _) in enumerate(batches):
            assert pixels.shape == (batch, 3, size, size)
            if (epoch, step) == (2, 1):
                state = batches.state_dict()
    again = api.Batches(digits_cache, digits, size=sizes, **options)
    again.load_state_dict(state)
    assert (again.epoch, again.step, len(list(again))) == (2, 2, 3)
    with pytest.raises(UsageError, match="Pass epochs, too"):
        api.Batches(digits_cache, digits, size=sizes)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("[[0.0, 128], [0.5]]", "is no row of a schedule"),
        ("[[0.0, 128.5]]", "is no row of a schedule"),
        ("[[0.0, 0]]", "is no row of a schedule"),
        ("[[0.0, 5000]]", "is no row of a schedule"),
        ("[[0.0, 128, 0]]", "a batch size must be"),
        ("[[0.5, 128]]", "begin at the epochs"),
        ("[]", "begin at the epochs"),
        ("[[0.0, 128], [0.1, 160], [0.2, 224]]", "begin at the epochs"),
        ("[[0.0, 128], [1.0, 160]]", "begin at the epochs"),
        ("[0.0, 128]", "expected a list"),
        ("5000", "size must be at least 0 and at most 4,096"),
        ('"large"', "expected int"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load("digits", ["epochs=4", f"size={size}"])


def test_phases_begin_with_the_first_epoch_of_their_share() -> None:
    recipe = recipes.load("digits", ["epochs=18", "size=[[0, 128, 32], [0.5, 176], [0.85, 224]]"])
    assert recipe.phases == (Phase(0, 128, 32), Phase(9, 176, 64), Phase(16, 224, 64))
    assert (recipe.train_size(32), recipe.largest(32)) == (224, (224, 64))
    thirty = recipes.load("digits", ["epochs=30", "size=[[0, 128], [0.1, 176]]"])
    assert thirty.phases[1].first == 3  # 0.1 × 30 is above 3 in floating point


def test_a_plan_adds_up_the_phases(digits_cache: Path) -> None:
    recipe = recipes.load("digits", [*WORDS, "grad_accum_steps=4"])
    facts = plan.plan(recipe, plan.of_store(Cache.open(digits_cache)))
    assert (facts["updates"], facts["images"], facts["steps_per_epoch"]) == (3, 300, 2)
    assert facts["phases"] == (
        "1 × 16 px in batches of 50, 1 × 24 px in batches of 25, 1 × 48 px in batches of 50"
    )


def test_a_cohort_has_one_schedule_of_batch_sizes() -> None:
    def of(name: str, **values: Any) -> Student:
        return Student(name, replace(recipes.load("digits"), **values), values)

    sizes = {"fixed": 48, "rising": ((0.0, 16, 32), (0.5, 48))}
    students = [of(f"{n}{t}", size=s, temperature=t) for n, s in sizes.items() for t in (1.0, 4.0)]
    # the same shares of another number of epochs are other epochs
    students.append(of("longer", size=sizes["rising"], epochs=20))
    needs = {s.name: MemoryEstimate(1000, 100, 50, 0.1, 10.0, "cpu") for s in students}
    grouped = [[s.name for s in cohort] for cohort in cohorts.group(students, needs, 1e9, 32)]
    assert grouped == [
        ["fixed1.0", "fixed4.0"], ["rising1.0", "rising4.0"], ["longer"]
    ]  # fmt: skip
    batch = 4 * 3 * 48 * 48 * 64 * 4  # memory is that of the largest size
    assert len(cohorts.group(students[2:4], needs, batch + 251, 32)) == 1
    with pytest.raises(UsageError, match="too small"):
        cohorts.group(students[2:4], needs, batch + 149, 32)
    compiled = [replace(s.recipe, compile=True) for s in students[2:4] * 3]
    compiled = [Student(f"c{i}", recipe, {}) for i, recipe in enumerate(compiled)]
    needs |= {s.name: needs["fixed1.0"] for s in compiled}
    assert [len(c) for c in cohorts.group(compiled, needs, 1e9, 32)] == [4, 2]
