"""Sweeps: errors before anything is written, results and costs, and nothing done twice."""

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_tools.cli import main
from cache_tools.errors import UsageError
from tests.helpers.sweeps import (
    SIZES,
    SMALL,
    Command,
    opened,
)
from train import run_dir
from train.cli import sweep as command
from train.sweep import cohorts
from train.sweep import runner as sweeps
from train.sweep.cohorts import MemoryEstimate
from train.trainer import loop


def test_errors_come_before_anything_is_written(
    kdcache: Command,
    digits_cache: Path,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "sweep"
    command = ("--cache", digits_cache, "--out", out)
    there = written(SMALL)
    for arguments, words in {
        (there, *command, "student=x", "--students", "0-9"): "--students 0-9 must be numbers",
        (there, *command, "--memory", "0.000001"): "the device is too small for test_efficientnet",
        (there, *command, "mode=online"): "a sweep trains from the cache",
        (there, *command, "num_views=9"): "num_views=9 cannot be shown",
        (there, *command, "--asha"): "--asha requires --engine ray",
        (there, "--out", out): "missing --cache",
        ("digit", *command): "Did you mean 'digits'",
    }.items():
        outcome = kdcache("sweep", *arguments)
        assert outcome.code == 2
        assert words in outcome.err
        assert outcome.out == ""
        assert not out.exists()
    for folder, what in {digits_cache: "a cache", there: "a file"}.items():
        outcome = kdcache("sweep", there, "--cache", digits_cache, "--out", folder)
        assert outcome.code == 2
        assert f"{folder} is {what}. Choose another --out" in outcome.err
    half = shutil.copytree(digits_cache, tmp_path / "half.zarr")
    shutil.rmtree(half / "commits" / "v0001")
    outcome = kdcache("sweep", there, "--cache", half, "--data", source(digits_cache), "--out", out)
    assert outcome.code == 1
    assert "view 1, block 0" in outcome.err
    assert not out.exists()
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    outcome = kdcache("sweep", there, *command)
    assert outcome.code == 2
    assert "--engine ray and --print slurm" in outcome.err
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    strange = written('base = "digits"\n[grid]\nstudent = ["test_vit", "resnet5o"]')
    outcome = kdcache("sweep", strange, *command)
    assert outcome.code == 2
    assert "no network 'resnet5o'" in outcome.err
    assert not out.exists()


def source(cache: Path) -> str:
    return Path(f"{cache}.source").read_text().strip()


@pytest.fixture(scope="module")
def swept(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep, one of whose students diverges."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "grid.toml").write_text(
        SMALL.replace("[grid]", '[[runs]]\nname = "calm"\n[[runs]]\nname = "wild"\nopt = "sgd"\n'
                      "lr = 1e6\n[grid]").replace('"test_efficientnet", ', "")
    )  # fmt: skip
    words = [
        "kdcache",
        "sweep",
        folder / "grid.toml",
        "--cache",
        digits_cache,
        "--out",
        folder / "out",
    ]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [*map(str, words)])
        main.main()
        raise SystemExit(0)
    assert not end.value.code
    return folder


def test_a_sweep_reports_its_result_and_cost(swept: Path) -> None:
    facts = json.loads((swept / "out/sweep.json").read_text())
    assert facts["swept"] == ["temperature", "opt", "lr"]
    states = {row["name"]: row["state"] for row in facts["students"]}
    assert states == {
        "calm,test_resnet,temperature=1": "finished",
        "calm,test_resnet,temperature=4": "finished",
        "wild,test_resnet,temperature=1": "diverged",
        "wild,test_resnet,temperature=4": "diverged",
    }
    why = json.loads((swept / "out/wild,test_resnet,temperature=1/failed.json").read_text())
    assert why["kind"] == "NonFinite"
    assert why["error"].startswith(("the loss is ", "predictions on the validation split are NaN"))
    with (swept / "out/sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["state"] for line in lines] == [*states.values()]
    assert float(lines[0]["accuracy"]) == facts["students"][0]["top1_ema"]
    assert (swept / "out/sweep.png").read_bytes()[:4] == b"\x89PNG"
    forwards = facts["ledger"]["forwards"]
    assert forwards == {"cache": 400, "online": 200, "online_cohorts": 100}
    assert facts["ledger"]["imagenet"]["forwards"] == {
        "cache": 1_281_167 * 4,
        "online": 1_281_167 * 2,
    }


def test_a_rerun_mends_the_files_of_a_sweep(
    swept: Path, kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(swept, tmp_path / "again")
    written, config = folder / "out/sweep.json", next((folder / "out").glob("calm*/config.json"))
    text = config.read_bytes()
    written.write_text(written.read_text()[:-40])
    config.unlink()
    outcome = kdcache(
        "sweep", folder / "grid.toml", "--cache", digits_cache, "--out", folder / "out"
    )
    assert outcome.code == 0, outcome.err
    assert config.read_bytes() == text
    assert len(json.loads(written.read_text())["students"]) == 4


def test_a_second_time_nothing_is_trained(
    swept: Path, kdcache: Command, digits_cache: Path, teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(swept, tmp_path / "again")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    arguments = ("sweep", folder / "grid.toml", "--cache", digits_cache, "--out", folder / "out")
    outcome = kdcache(*arguments, "--teacher", teacher)
    assert outcome.code == 0, outcome.err
    assert "4 students, 2 of them finished; 0 cohorts: nothing to do" in outcome.err
    assert "diverged (" in outcome.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before
    first, *_ = outcome.out.splitlines()
    assert first.split()[:5] == ["name", "temperature", "opt", "lr", "parameters"]
    assert "teacher forwards  400 once, for the cache" in outcome.out
    assert "ms (measured, cpu)" in outcome.out
    known = json.loads((folder / "out/sweep.json").read_text())["ledger"]["teacher"]
    assert known["seconds_per_view"] > 0
    refused = kdcache(*arguments, "batch_size=20")
    assert refused.code == 2
    assert "batch_size: 50 against 20" in refused.err
    need = next(p.parent for p in (folder / "out").glob("*/result.json")) / "need.json"
    need.unlink()
    damaged = kdcache(*arguments, "--teacher", teacher)
    assert (damaged.code, f"{need} cannot be read" in damaged.err) == (1, True), damaged.err


def test_a_measurement_is_not_that_of_other_values(
    digits_cache: Path, written: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of kdcache 0.1 it is that of the run: what replaces it is measured."""
    measured, path, out = [], written(SMALL), tmp_path / "sweep"
    estimate = MemoryEstimate(1, 1000, 1000, 1.0, 1.0, "cpu")

    def measure(recipe: Any, *_: Any) -> MemoryEstimate:
        measured.append((recipe.student, recipe.batch_size))
        return estimate

    monkeypatch.setattr(cohorts, "measure", measure)

    def prepared(fresh: bool = False, **values: Any) -> list[tuple[str, int]]:
        measured.clear()
        sweep = opened(digits_cache, path, out)
        students = [replace(one, recipe=replace(one.recipe, **values)) for one in sweep.students]
        sweeps.prepare(replace(sweep, students=tuple(students)), fresh)
        return list(measured)

    both = [(name, 50) for name in ("test_efficientnet", "test_resnet")]
    assert prepared() == both
    assert prepared() == prepared(fresh=True) == prepared(fresh=True, lr=0.5) == []
    assert prepared(fresh=True, batch_size=20) == [(name, 20) for name, _ in both]
    needs = sorted(out.glob("*/need.json"))
    assert len(needs) == 4
    for need in needs:
        facts = json.loads(need.read_text())
        assert facts.pop("measured")["batch_size"] == 20
        assert MemoryEstimate.from_json(facts) == estimate
        run_dir.write_json(need, facts)
    assert prepared(batch_size=20) == []
    for need in needs:
        run_dir.write_json(need, estimate.to_json())
    assert prepared(fresh=True, batch_size=20) == [(name, 20) for name, _ in both]


def test_a_table_is_whole_though_another_task_ends_meanwhile(
    swept: Path, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(swept, tmp_path / "again")
    sweep = opened(digits_cache, folder / "grid.toml", folder / "out")
    late = folder / "out" / sweep.students[0].name / "result.json"
    late.rename(folder / "kept.json")
    write = command._write

    def write_and_end(*told: Any) -> bool:
        drawn = write(*told)
        if not late.exists():
            shutil.copy(folder / "kept.json", late)
        return drawn

    monkeypatch.setattr(command, "_write", write_and_end)
    command._report(sweep, [], json_=False)
    rows = json.loads((folder / "out/sweep.json").read_text())["students"]
    assert [row["state"] for row in rows] == ["finished", "finished", "diverged", "diverged"]


def test_out_of_memory_halves_the_cohort(
    digits_cache: Path,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = opened(digits_cache, written(SMALL), tmp_path / "sweep")
    planned = sweeps.prepare(sweep)
    sizes: list[int] = []

    def train_cohort(runs: list[Any], *_: Any, **__: Any) -> list[Any]:
        sizes.append(len(runs))
        if len(runs) > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        if len(sizes) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return [{}]

    monkeypatch.setattr(loop, "train_cohort", train_cohort)
    with pytest.raises(UsageError, match="too small for test_resnet,temperature=4"):
        sweeps.train(sweep, planned)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_a_signal_between_two_cohorts_stops_the_sweep(
    digits_cache: Path,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = opened(digits_cache, written(SMALL), tmp_path / "sweep")
    planned = sweeps.prepare(sweep, max_students=1)
    monkeypatch.setattr(
        sweeps, "train_cohort", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(KeyboardInterrupt):
        sweeps.train(sweep, planned)


def test_a_student_that_left_has_a_reason(swept: Path, kdcache: Command) -> None:
    wild = swept / "out" / "wild,test_resnet,temperature=1"
    why = json.loads((wild / "failed.json").read_text())["error"]
    for verb in ("eval", "export"):
        outcome = kdcache(verb, wild, *(["--out", swept / "e"] if verb == "export" else []))
        assert outcome.code == 1
        assert f"the run {wild} has diverged ({why})" in outcome.err
    shutil.copytree(wild, swept / "stopped")
    (swept / "stopped" / "failed.json").rename(swept / "stopped" / "stopped.json")
    assert f"was stopped ({why})" in kdcache("eval", swept / "stopped").err
    (swept / "stopped" / "stopped.json").write_text("[")
    assert "was stopped (the reason is not recorded)" in kdcache("eval", swept / "stopped").err


def test_a_sweep_over_sizes_decodes_once_for_all(
    digits_cache: Path, kdcache: Command, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each student is the one of `kdcache train size=…`; other batches are other cohorts."""
    words, out = ["--cache", digits_cache, "--device=cpu"], tmp_path / "sweep"
    outcome = kdcache("sweep", written(SIZES), "--out", out, *words, "epochs=1")
    assert outcome.code == 0, outcome.err
    assert "cohort 1 of 1 (16, 32, 48 px of one decode): size=16, size=0, size=48" in outcome.err
    keys = ["epochs=1", "views_per_epoch=1", "batch_size=25", "student=test_vit", "drop_path=0.2"]
    for size in (16, 0, 48):
        run = tmp_path / f"{size}"
        alone = kdcache("train", "digits", "--out", run, *words, *keys, f"size={size}")
        assert alone.code == 0, alone.err
        assert weights(out / f"size={size}") == weights(run)
    ledger = json.loads((out / "sweep.json").read_text())["ledger"]
    assert ledger["forwards"]["online_cohorts"] == 300  # a teacher sees each size
    apart = SIZES + '[[runs]]\nname = "a"\n[[runs]]\nname = "b"\nbatch_size = 50\nsize = 48\n'
    apart = apart.replace("[grid]\nsize = [16, 0, 48]\n", "")
    outcome = kdcache("sweep", written(apart), "--out", tmp_path / "apart", *words, "epochs=1")
    assert outcome.code == 0, outcome.err
    assert "students of 32, 48 px do not all share the decode" in outcome.err
    assert "picture: batch_size differs" in outcome.err


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()
