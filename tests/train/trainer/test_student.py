"""Updates of a student: rates, groups of batches, and values that are not finite."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3

from tests.helpers.outcome import Outcome
from tests.helpers.training import FAST, weights
from train import recipe as recipes
from train.trainer.student import StudentTrainer

Command = Callable[..., Outcome]


def test_weights_and_temperature_change_over_the_run() -> None:
    recipe = recipes.load("digits", ["temperature_end=1.0", "distill_loss_weight_end=0.5"])
    assert [recipe.now("temperature", p) for p in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert [recipe.now("distill_loss_weight", p) for p in (0.0, 1.0)] == [1.0, 0.5]
    assert recipe.now("task_loss_weight", 0.7) == 0.0


@pytest.mark.parametrize(
    ("size", "accumulated"), [(40, [10, 4]), (100, [50, 3])], ids=["whole", "incomplete"]
)
def test_accumulated_batches_are_one_large_batch(
    kdcache: Command, digits_cache: Path, tmp_path: Path, size: int, accumulated: list[int]
) -> None:
    """A network without batch statistics takes the same step; the order of samples is the same.

    The last group of an epoch may be smaller than grad_accum_steps.
    """
    found = {}
    for name, (batch, steps) in {"one": (size, 1), "four": accumulated}.items():
        same_but = [
            "epochs=1",
            f"views_per_epoch={1 if size == 100 else 2}",
            "student=test_vit",
            f"batch_size={batch}",
            f"grad_accum_steps={steps}",
            "opt=sgd",
            "lr=0.1",
            "model_ema_decay=0.0",
        ]
        outcome = kdcache(
            "train", "digits", "--cache", digits_cache, "--out", tmp_path / name, *same_but
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        found[name] = weights(tmp_path / name)
    for key, value in found["one"].items():
        assert torch.allclose(value, found["four"][key], rtol=1e-3, atol=1e-5), key


def test_schedule_and_moving_average_count_updates(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches an epoch in groups of four, four and two: three updates."""
    steps, rates = [], []
    update, step = ModelEmaV3.update, torch.optim.AdamW.step
    monkeypatch.setattr(
        ModelEmaV3, "update", lambda *a, step: (steps.append(step), update(*a, step=step))
    )
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **b: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **b)),
    )
    words = ["epochs=2", "views_per_epoch=1", "batch_size=10", "grad_accum_steps=4", "lr=1.0"]
    for name, more in {
        "updates": ["warmup_epochs=1", "warmup_lr=0.0"],
        "epochs": ["sched_on_updates=false"],
        "prefix": ["warmup_prefix=true", "warmup_epochs=1", "warmup_lr=0.0"],
    }.items():
        out = ("--cache", digits_cache, "--out", tmp_path / name)
        assert kdcache("train", "digits", *out, *words, *more).code == 0
    assert steps == [1, 2, 3, 4, 5, 6] * 3
    assert rates == pytest.approx([
        *(0, 1 / 3, 2 / 3, 1 / 2, 0.25, 0.5 + 0.5 * math.cos(math.pi * 5 / 6)),
        *(1, 1, 1, 0.5, 0.5, 0.5),
        *(0, 1 / 3, 2 / 3, 1, 0.75, 0.25),
    ])  # fmt: skip


def test_a_loss_that_explodes_is_reported(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = (
        "train",
        "digits",
        "--cache",
        digits_cache,
        "--out",
        run,
        *FAST,
        "opt=sgd",
        "lr=1e6",
    )
    outcome = kdcache(*arguments)
    assert outcome.code == 1
    assert "NonFinite: the loss is" in outcome.err
    assert "its views begin with digit_" in outcome.err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "a weight is NaN or Inf at epoch 0, step 1"),
        (-math.inf, "a weight is NaN or Inf at epoch 0, step 1"),
        (3e38, "predictions on the validation split are NaN or Inf at epoch 0, step 1"),
    ],
)
def test_a_run_of_one_step_that_breaks_the_student_is_not_finished(
    value: float,
    message: str,
    kdcache: Command,
    digits_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = StudentTrainer.update

    def breaks(student: StudentTrainer) -> None:
        update(student)
        for parameter in student.module.parameters():
            parameter.data[...] = value

    monkeypatch.setattr(StudentTrainer, "update", breaks)
    short = ["epochs=1", "views_per_epoch=1", "batch_size=100"]
    outcome = kdcache("train", "digits", "--cache", digits_cache, "--out", tmp_path / "run", *short)
    assert outcome.code == 1
    assert message in outcome.err
    assert not [*tmp_path.glob("run/model*"), *tmp_path.glob("run/result.json")]
    assert not list(tmp_path.glob("run/*.pt"))


def test_a_checkpoint_of_broken_weights_is_not_finished(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", "digits", "--cache", digits_cache, "--out", tmp_path / "run", *FAST)
    monkeypatch.setattr(StudentTrainer, "finish", StudentTrainer.save)
    assert kdcache(*run).code == 1  # killed before the end
    monkeypatch.undo()
    state = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    next(v for v in state["model"].values() if v.is_floating_point())[0] = math.nan
    torch.save(state, tmp_path / "run/checkpoint.pt")
    (tmp_path / "run/digests.json").unlink()
    outcome = kdcache(*run)
    assert (outcome.code, "NonFinite: a weight is NaN or Inf" in outcome.err) == (1, True)
    assert not (tmp_path / "run/result.json").exists()
