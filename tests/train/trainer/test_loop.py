"""`kdcache train`: its result, the student that it saves, and the ways of training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from cache_tools.errors import UsageError
from cache_tools.store.cache import Cache
from tests.helpers.outcome import Outcome
from tests.helpers.training import FAST, same, weights
from train.api import fit
from train.data.schedule import Schedule
from train.loss.task import CachedDistillationTask

Command = Callable[..., Outcome]


RESULT = (
    "student mode top1 top1_ema images_per_second data_wait epochs seed cache_fingerprint seconds"
)


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


def test_the_best_student_is_kept(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert result["top1_best"] == max(max(r["top1"], r["top1_ema"]) for r in rows)
    assert (finished / "model-best/model.safetensors").exists()
