import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

from cache_tools.errors import UsageError
from cache_tools.runtime import progress
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from train.api import fit
from train.data.schedule import Schedule
from train.loss.task import CachedDistillationTask
from train.trainer.student import StudentTrainer

FAST = ["epochs=2", "views_per_epoch=2", "batch_size=40"]
RESULT = (
    "student mode top1 top1_ema images_per_second data_wait epochs seed cache_fingerprint seconds"
)
Command = Callable[..., Outcome]


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


@pytest.fixture(scope="module")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, made by the command itself."""
    out = tmp_path_factory.mktemp("run") / "run"
    command = [
        kdcache_binary(),
        "train",
        "digits",
        "--cache",
        str(digits_cache),
        "--out",
        str(out),
        *FAST,
    ]
    subprocess.run(command, check=True)
    return out


def kdcache_binary() -> str:
    return str(Path(sys.executable).parent / "kdcache")


def test_the_result_keeps_its_contract(
    finished: Path, kdcache: Command, digits_cache: Path
) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert set(RESULT.split()) <= result.keys()
    assert result["student"] == "test_efficientnet"
    assert result["mode"] == "kd"
    assert 5 < result["top1"] < 90
    fingerprint = json.loads(kdcache("info", digits_cache, "--json").out)["fingerprint"]
    assert result["cache_fingerprint"] == fingerprint
    assert len((finished / "log.jsonl").read_text().splitlines()) == 2
    assert not (finished / "checkpoint.pt").exists()


def test_timm_opens_the_student_and_eval_measures_the_same(
    finished: Path, kdcache: Command
) -> None:
    model = timm.create_model(f"local-dir:{finished}/model", pretrained=True)
    assert same(dict(model.state_dict()), weights(finished))
    result = json.loads((finished / "result.json").read_text())
    measured = json.loads(kdcache("eval", finished, "--json").out)
    assert measured["top1"] == result["top1"]
    assert measured["top1_ema"] == result["top1_ema"]
    assert measured["images"] == 797


def test_a_second_time_trains_nothing_without_fresh(
    finished: Path, kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "model/model.safetensors").stat().st_mtime_ns
    arguments = ("train", "digits", "--cache", digits_cache, "--out", run, *FAST)
    assert "is finished; --fresh" in kdcache(*arguments).err
    assert (run / "model/model.safetensors").stat().st_mtime_ns == before
    refused = kdcache(*arguments, "temperature=2.0")
    assert refused.code == 2
    assert "recipe.temperature: 4.0 against 2.0" in refused.err
    assert "--fresh" in refused.err
    assert kdcache(*arguments, "--fresh").code == 0
    assert (run / "model/model.safetensors").stat().st_mtime_ns > before
    assert same(weights(run), weights(finished))  # and trains the very same student


INTERRUPTED = """
import os, signal, sys
from cache_tools.cli import main as cli
from train.trainer.student import StudentTrainer

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
name, left = sys.argv.pop(1), int(sys.argv.pop(1))
real = getattr(StudentTrainer, name)

def interrupted(self, *arguments, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, *arguments, **options)

setattr(StudentTrainer, name, interrupted)
sys.argv[0] = "kdcache"
cli.console()
"""
"""`kdcache train` that gets Ctrl-C at its n-th call of a method of the learner."""


@pytest.mark.parametrize(("name", "number"), [("__init__", 1), ("turn", 1), ("turn", 7)])
def test_ctrl_c_and_going_on_give_the_undisturbed_student(
    finished: Path, digits_cache: Path, tmp_path: Path, name: str, number: int
) -> None:
    run = tmp_path / "run"
    arguments = ["train", "digits", "--cache", str(digits_cache), "--out", str(run), *FAST]
    command = [sys.executable, "-c", INTERRUPTED, name, str(number), *arguments]
    stopped = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert (run / "checkpoint.pt").exists() == (name == "turn")
    subprocess.run([kdcache_binary(), *arguments], check=True)
    assert same(weights(run), weights(finished))
    assert same(weights(run, "model-ema"), weights(finished, "model-ema"))
    rows = [(f / "log.jsonl").read_text() for f in (run, finished)]
    assert rows[0] == rows[1]


def test_a_checkpoint_in_the_middle_of_an_epoch_is_exact(
    finished: Path, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops after every step, and still ends with the same student."""
    from cache_tools.runtime.signals import StopRequest
    from train import recipe as recipes
    from train import run_dir
    from train.data.inputs import open_inputs
    from train.trainer import loop

    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    recipe, inputs = recipes.load("digits", FAST), open_inputs(digits_cache, None)
    out, stops = tmp_path / "run", 0
    run_dir.init_run(out, recipe, inputs, fresh=False)
    while not (out / "result.json").exists():
        try:
            loop.train(recipe, inputs, out, torch.device("cpu"))
        except KeyboardInterrupt:
            stops += 1
    assert stops == 10
    assert same(weights(out), weights(finished))


def test_the_student_records_what_it_was_measured_on(finished: Path) -> None:
    seen = timm.create_model(f"local-dir:{finished / 'model'}").pretrained_cfg
    assert (tuple(seen["input_size"]), seen["crop_pct"]) == ((3, 32, 32), 1.0)


def test_threads_change_no_weight(
    finished: Path, kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        kdcache("train", "digits", "--cache", digits_cache, "--out", run, *FAST, "threads=3").code
        == 0
    )
    assert same(weights(run), weights(finished))


def test_shuffled_views_are_other_views(
    finished: Path, kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    """The fixture's run shows views 0 and 1 first; with this seed the shuffled order has others."""
    store = Cache.open(digits_cache)
    assert Schedule(store, 2, 40, seed=1, shuffle=True).view_numbers(0) == (2, 3)
    for order in ("cycle", "shuffle"):
        arguments = ("--cache", digits_cache, "--out", tmp_path / order, *FAST, "seed=1")
        assert kdcache("train", "digits", *arguments, f"view_order={order}").code == 0
    assert not same(weights(tmp_path / "cycle"), weights(tmp_path / "shuffle"))


@pytest.mark.parametrize(
    "extra",
    [
        ["mode=labels", "smoothing=0.1"],
        ["task_loss_weight=0.5", "clip_grad=1.0", "model_ema_decay=0.0"],
        ["precision=bf16", "opt=lamb", "sched=poly", "warmup_epochs=1"],
        ["loss=dkd", "dkd_beta=1.0", "temperature_end=1.0"],
        ["loss=dist", "temperature=2.0", "student=test_vit", "layer_decay=0.7", "drop_path=0.1"],
        ["loss=bkd", "task_loss=bce", "task_loss_weight=1.0", "distill_loss_weight_end=0.0"],
        ["tail=bucket", "grad_accum_steps=2", "student=test_convnext2"],
    ],
)
def test_ways_of_training(
    kdcache: Command, digits_cache: Path, tmp_path: Path, extra: list[str]
) -> None:
    run = tmp_path / "run"
    outcome = kdcache(
        "train", "digits", "--cache", digits_cache, "--out", run, *FAST, *extra, "--json"
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["loss"] > 0
    assert (result["top1_ema"] is None) == ("model_ema_decay=0.0" in extra)
    assert (run / "model-ema").exists() == ("model_ema_decay=0.0" not in extra)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        *(pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in ("bf16", "fp16")),
    ],
)
def test_losses_in_mixed_precision_are_near_those_in_full(
    digits_cache: Path, tmp_path: Path, device: str, precision: str
) -> None:
    losses = []
    for each in ("fp32", precision):
        values = {"epochs": 3, "views_per_epoch": 2, "batch_size": 40, "precision": each}
        out = tmp_path / each
        fit("digits", cache=digits_cache, out=out, device=device, values=values, progress=False)
        rows = (out / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    # in fp16 the first updates are left out, until the scale of the loss is small enough
    assert losses[1] == pytest.approx(losses[0], rel=0.15 if precision == "fp16" else 0.05)
    assert losses[1] != losses[0]


@pytest.mark.gpu
def test_a_gpu_without_room_for_a_step_is_an_error_with_a_next_step(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's own error; afterwards the device trains again."""
    forward, left = CachedDistillationTask.forward, 2

    def too_large(self: Any, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")
        return forward(self, *arguments)

    monkeypatch.setattr(CachedDistillationTask, "forward", too_large)
    values = {"epochs": 1, "views_per_epoch": 1, "batch_size": 40}
    with pytest.raises(UsageError, match="the device is too small for test_efficientnet"):
        fit("digits", cache=digits_cache, out=tmp_path / "run", device="cuda", values=values)
    fit("digits", cache=digits_cache, out=tmp_path / "run", device="cuda", values=values)


def test_distillation_moves_the_student_towards_the_teacher(
    kdcache: Command, digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    losses = []
    for epochs in (1, 6):
        run = tmp_path / str(epochs)
        long = [f"epochs={epochs}", "views_per_epoch=4", "batch_size=40"]
        outcome = kdcache("train", "digits", "--cache", digits_cache, "--out", run, *long, "--json")
        losses.append(json.loads(outcome.out)["loss"])
    assert losses[1] < 0.7 * losses[0]


def test_comparison_of_both_arms(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    bar = progress.bar

    def recorded(label: str, *more: Any, **options: Any) -> AbstractContextManager[progress.Bar]:
        labels.append(label)
        return bar(label, *more, **options)

    monkeypatch.setattr(progress, "bar", recorded)
    out = tmp_path / "both"
    arguments = ("train", "digits", "--cache", digits_cache, "--out", out, "--seeds", 2, *FAST)
    outcome = kdcache(*arguments, "--against", "labels")
    assert outcome.code == 0, outcome.err
    assert [label for label in labels if "seed" in label] == [
        "kd seed 0 (1 of 4)",
        "labels seed 0 (2 of 4)",
        "kd seed 1 (3 of 4)",
        "labels seed 1 (4 of 4)",
    ]
    result = json.loads((out / "comparison.json").read_text())
    for i, seed in enumerate((0, 1)):
        pair = [
            json.loads((out / f"{mode}-seed{seed}" / "result.json").read_text())["top1"]
            for mode in ("kd", "labels")
        ]
        assert result["gain"]["each"][i] == pytest.approx(pair[0] - pair[1])
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert "gain" in outcome.out
    assert f"{result['kd']['mean']:.1f}" in outcome.out


def test_a_cache_without_labels_trains_but_not_on_labels(
    kdcache: Command, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "c.zarr", tmp_path / "run"
    made = kdcache(
        "cache", "digits", "--data", digits, "--teacher", teacher, "--out", cache,
        "dataset.labels=ignore", "num_views=2",
    )  # fmt: skip
    assert made.code == 0, made.err
    outcome = kdcache("train", "digits", "--cache", cache, "--out", run, *FAST)
    assert "top-1 not measured" in outcome.out
    assert json.loads((run / "result.json").read_text())["top1"] is None
    refused = kdcache("train", "digits", "--cache", cache, "--out", run, *FAST, "mode=labels")
    assert refused.code == 2
    assert "has no labels" in refused.err


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
        for weights in student.module.parameters():
            weights.data[...] = value

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


def test_a_broken_checkpoint_gets_a_next_step(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "digits", "--cache", digits_cache, "--out", run, *FAST)
    assert kdcache(*arguments).code == 0
    (run / "result.json").unlink()
    (run / "checkpoint.pt").write_bytes(os.urandom(1000))
    outcome = kdcache(*arguments)
    assert outcome.code == 1
    assert "--fresh" in outcome.err


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


def test_stopped_between_updates_and_with_a_broken_last_checkpoint_it_is_still_exact(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation a stop waits for the update; the checkpoint before the last one serves."""
    from cache_tools.runtime.signals import StopRequest
    from train import recipe as recipes
    from train import run_dir
    from train.data.inputs import open_inputs
    from train.trainer import checkpoint, loop

    recipe, inputs = (
        recipes.load("digits", [*FAST, "grad_accum_steps=2"]),
        open_inputs(digits_cache, None),
    )
    run_dir.init_run(tmp_path / "undisturbed", recipe, inputs, fresh=False)
    loop.train(recipe, inputs, tmp_path / "undisturbed", torch.device("cpu"))
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    out, stops = tmp_path / "run", 0
    run_dir.init_run(out, recipe, inputs, fresh=False)
    while not (out / "result.json").exists():
        try:
            loop.train(recipe, inputs, out, torch.device("cpu"))
        except KeyboardInterrupt:
            stops += 1
            if stops == 3:
                assert (out / checkpoint.PREVIOUS).exists()
                data = bytearray((out / checkpoint.NAME).read_bytes())
                data[len(data) // 2] ^= 1  # within a tensor: torch would load it
                (out / checkpoint.NAME).write_bytes(data)
    assert stops == 7  # five updates in two epochs of five batches; one of them done twice
    assert same(weights(out), weights(tmp_path / "undisturbed"))
    assert not list(out.glob("checkpoint*"))


def test_weights_and_temperature_change_over_the_run() -> None:
    from train import recipe as recipes

    recipe = recipes.load("digits", ["temperature_end=1.0", "distill_loss_weight_end=0.5"])
    assert [recipe.now("temperature", p) for p in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert [recipe.now("distill_loss_weight", p) for p in (0.0, 1.0)] == [1.0, 0.5]
    assert recipe.now("task_loss_weight", 0.7) == 0.0


def test_the_best_student_is_kept(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert result["top1_best"] == max(max(r["top1"], r["top1_ema"]) for r in rows)
    assert (finished / "model-best/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["top_k=5"], []),
        (["temperature=3.0"], []),  # all ten classes are kept
        (["top_k=5", "temperature=3.0"], ["T = 3, and the targets"]),
        (["top_k=5", "temperature_end=1.0"], ["T = 4 to 1, and the targets"]),
        (["top_k=5", "tail=zero"], ["tail=zero at T = 4"]),
        (
            ["top_k=5", "tail=zero", "temperature=1.0"],
            ["the targets keep too few classes for T = 1"],
        ),
        (["top_k=5", "loss=bkd", "temperature=3.0"], []),
    ],
)
def test_targets_that_are_approximate_at_a_temperature_are_logged(
    digits_cache: Path, caplog: pytest.LogCaptureFixture, words: list[str], expected: list[str]
) -> None:
    from train import recipe as recipes
    from train.data.inputs import open_inputs
    from train.trainer import validate

    validate.check([recipes.load("digits", words)], open_inputs(digits_cache, None))
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [message[: len(e)] for message, e in zip(found, expected, strict=True)] == expected
