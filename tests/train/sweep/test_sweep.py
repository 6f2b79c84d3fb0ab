"""Sweeps: what stands in a grid, who trains with whom, and what is never done twice."""

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cache_tools.cli import main
from cache_tools.errors import KdcacheError, RecipeError, UsageError
from cache_tools.storage import fsspec_client
from cache_tools.store import info
from tests.helpers.outcome import Outcome
from tests.helpers.paths import ROOT
from tests.helpers.range_server import RangeServer, serve
from tests.helpers.stage1 import PATIENCE
from train import recipe as recipes
from train import run_dir
from train.api import fit
from train.cli import sweep as command
from train.data.inputs import open_inputs
from train.sweep import cohorts, cost, grid, plot, ray_tune, table
from train.sweep import runner as sweeps
from train.sweep.cohorts import MemoryEstimate
from train.sweep.grid import Student
from train.trainer import loop

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


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, name: str = "grid.toml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def names(path: Path, *overrides: str) -> list[str]:
    return [student.name for student in grid.load(str(path), overrides)]


def test_a_grid_is_every_combination_and_a_list_is_itself(
    written: Callable[[str], Path],
) -> None:
    assert names(written(SMALL)) == [
        "test_efficientnet,temperature=1",
        "test_efficientnet,temperature=4",
        "test_resnet,temperature=1",
        "test_resnet,temperature=4",
    ]
    listed = written(
        'base = "digits"\n[grid]\nseed = [0, 1]\n[[runs]]\nname = "bold"\nlr = 1e-2\n'
        '[[runs]]\nlr = 1e-4\nloss = "dkd"\ninit = "hf-hub:a/b"\n'
    )
    students = grid.load(str(listed), ["epochs=3"])
    assert [student.name for student in students] == [
        "bold,seed=0",
        "bold,seed=1",
        "lr=0.0001,loss=dkd,init=hf-hub-a-b,seed=0",
        "lr=0.0001,loss=dkd,init=hf-hub-a-b,seed=1",
    ]
    assert [(s.recipe.lr, s.recipe.seed, s.recipe.epochs) for s in students][:2] == [
        (1e-2, 0, 3),
        (1e-2, 1, 3),
    ]
    assert grid.swept(students) == ["lr", "seed", "loss", "init"]


def test_arguments_of_a_table_are_swept(written: Callable[[str], Path]) -> None:
    text = (
        'base = "digits"\nopt_kwargs.eps = 1e-6\n'
        "[grid]\nopt_kwargs.betas = [[0.9, 0.95], [0.9, 0.999]]\n"
        '[[runs]]\nname = "a"\n[[runs]]\nname = "b"\nstudent_kwargs = {drop_rate = 0.1}\n'
    )
    students = grid.load(str(written(text)))
    assert [student.name for student in students] == [
        f"{run},opt_kwargs.betas={betas}" for run in "ab" for betas in ("0.9-0.95", "0.9-0.999")
    ]
    assert students[3].recipe.opt_kwargs == {"eps": 1e-6, "betas": [0.9, 0.999]}
    assert students[3].recipe.student_kwargs == {"drop_rate": 0.1}
    assert grid.swept(students) == ["opt_kwargs.betas", "student_kwargs"]
    assert grid.plain(students[3].recipe.value("student_kwargs")) == "drop_rate=0.1"
    tables = 'base = "digits"\n[grid]\nopt_kwargs = [{eps = 1e-8}, {eps = 1e-6}]\n'
    assert names(written(tables)) == ["opt_kwargs=eps=1e-08", "opt_kwargs=eps=1e-06"]


def test_the_grid_that_comes_with_it() -> None:
    students = grid.load("digits")
    assert len(students) == 12
    assert len({student.recipe.stream for student in students}) == 1  # one cohort


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\ntemprature = [1.0]", ["unknown key 'temprature'", "Did you mean 'temperature'"]),
        ("epoch = 3\n[grid]\nlr = [1.0]", ["unknown key 'epoch'", "Did you mean 'epochs'"]),
        ("[[runs]]\nlearning = 1", ["unknown key 'learning'"]),
        ("[grdi]\nlr = [1.0]", ["unknown key 'grdi'", "Did you mean 'grid'"]),
        ("[grid]\noptkwargs.eps = [1e-8]", ["unknown key 'optkwargs.eps'"]),
        ("[grid]\nlr.eps = [1e-8]", ["lr: expected float"]),
        ("[grid]\nlr = 1e-3", ["the grid's lr is a list of at least one value, found 0.001"]),
        ("[grid]\nlr = []", ["the grid's lr is a list of at least one value, found []"]),
        ("[grid]", ["nothing is swept"]),
        ("", ["nothing is swept"]),
        ("[grid]\nlr = [-1.0]", ["lr must be above 0"]),
        ("[grid]\nloss = ['kl']", ["'kl' is not one of"]),
        ("[grid]\ntemperature = [1, 1.0]", ["2 students are named 'temperature=1'"]),
        ("[[runs]]\nname = 'a'\n[[runs]]\nname = 'a'", ["2 students are named 'a'"]),
        ("[[runs]]\nname = '..'", ["is no name for a student"]),
        ("runs = 3", ["students are listed as [[runs]]"]),
    ],
)
def test_a_grid_that_cannot_be(written: Callable[[str], Path], text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        grid.load(str(written(f'base = "digits"\n{text}' if "base" not in text else text)))
    for word in words:
        assert word in str(error.value)


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


def student(name: str, **values: Any) -> Student:
    return Student(name, replace(recipes.load("digits"), **values), values)


def test_cohorts_share_a_stream_and_fit_the_memory() -> None:
    students = [student(f"s{i}", temperature=1.0 + i) for i in range(5)]
    students += [student("other", batch_size=32), student("seeded", seed=1)]
    needs = {s.name: MemoryEstimate(1000, 100, 50, 0.1, 10.0, "cpu") for s in students}
    together = cohorts.group(students, needs, 1e9, 32)
    assert [[s.name for s in cohort] for cohort in together] == [
        ["s0", "s1", "s2", "s3", "s4"],
        ["other"],
        ["seeded"],
    ]
    assert [len(c) for c in cohorts.group(students, needs, 1e9, 32, max_students=2)] == [
        2,
        2,
        1,
        1,
        1,
    ]
    batch = 4 * 3 * 32 * 32 * 64 * 4  # what stays of three students, the largest turn of one
    assert [len(c) for c in cohorts.group(students[:5], needs, batch + 350, 32)] == [3, 2]
    with pytest.raises(UsageError, match="too small for s0: it needs"):
        cohorts.group(students, needs, batch + 149, 32)
    compiled = [student(f"c{i}", lr=1e-3 * (i + 1), compile=True) for i in range(9)]
    needs |= {s.name: needs["s0"] for s in compiled}
    assert [len(c) for c in cohorts.group(compiled, needs, 1e9, 32)] == [8, 1]


def test_what_a_student_takes_is_measured() -> None:
    recipe = recipes.load("digits", ["student=test_resnet", "model_ema_decay=0.0", "opt=sgd"])
    small = cohorts.measure(recipe, 10, 32, CPU)
    large = cohorts.measure(
        replace(recipe, batch_size=128, opt="adamw", model_ema_decay=0.9), 10, 32, CPU
    )
    weights = 4 * small.parameters
    assert weights < small.resident < 2.1 * weights  # sgd has momentum
    assert large.resident == pytest.approx(4 * weights, rel=0.1)  # average, and adam's two
    assert (large.activation_bytes - weights) == pytest.approx(
        2 * (small.activation_bytes - weights), rel=0.01
    )
    assert min(small.step_seconds, small.images_per_second) > 0


def opened(made: Path, text: Path, out: Path, **more: Any) -> sweeps.Sweep:
    inputs = open_inputs(made, None)
    return sweeps.Sweep(tuple(grid.load(str(text))), inputs, out, CPU, **more)


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


def test_commands_for_other_machines(
    kdcache: Command, digits_cache: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    arguments = ("sweep", written(SMALL), "--cache", digits_cache, "--out", out, "--together", 3)
    lines = kdcache(*arguments, "--print", "commands").out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0-2", "3"]
    assert lines[0].startswith(f"kdcache sweep {tmp_path}/grid.toml --cache")
    assert "--print" not in lines[0]
    for more, words in {
        ("--fresh",): "and --fresh",
        ("--engine", "ray"): "excludes --engine ray",
    }.items():
        refused = kdcache(*arguments, *more, "--print", "slurm")
        assert (refused.code, refused.out) == (2, "")
        assert words in refused.err
    assert not out.exists()
    assert info.numbers("0-2,5") == [0, 1, 2, 5]
    assert info.numbers("a") is None


def test_the_tasks_of_a_slurm_array_finish_the_grid(
    kdcache: Command, digits_cache: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "a sweep"
    sweep = ("sweep", written(SMALL), "--cache", digits_cache, "--out", out, "--together", 3)
    script = kdcache(*sweep, "--print=slurm", "--students", "0-3").out
    for line in ("#SBATCH --array=0-1", "#SBATCH --gpus-per-task=1", "#SBATCH --cpus-per-task=8"):
        assert line in script
    assert f"--out '{out}'" in script
    on_cpus = kdcache(*sweep, "--print=slurm", "--device", "cpu", "threads=2").out
    assert "--gpus" not in on_cpus
    assert "--cpus-per-task=2" in on_cpus
    assert not out.exists()
    asked = 'srun() { shift; for word; do printf "%s\\n" "$word"; done; }\n'
    for task in ("0", "1"):
        said = subprocess.run(
            ["bash", "-euc", asked + script],
            env={"SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "8"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        outcome = kdcache(*said.stdout.splitlines())
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("begun") + outcome.out.count("  new") == (1, 0)[int(task)]
    facts = json.loads((out / "sweep.json").read_text())
    assert [row["state"] for row in facts["students"]] == ["finished"] * 4
    nothing = kdcache(*sweep, "--print", "slurm")
    assert (nothing.code, nothing.out) == (2, "")
    assert "all students are finished" in nothing.err


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


def test_ray_is_selected_by_name(
    kdcache: Command, digits_cache: Path, written: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    arguments = ("sweep", written(SMALL), "--cache", digits_cache, "--out", tmp_path / "s")
    outcome = kdcache(*arguments, "--engine", "ray")
    assert outcome.code == 2
    assert "pip install 'kdcache[ray]'" in outcome.err


def test_what_a_trial_reports_to_ray(
    own_log: None,
    digits_cache: Path,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray may stop a trial at any report: before the last one the results are there."""
    text = SMALL.replace("epochs = 1", "epochs = 2").replace('"test_efficientnet", ', "")
    sweep = opened(digits_cache, written(text), tmp_path / "sweep", asha=True)
    cohort, *_ = sweeps.prepare(sweep)
    told: list[tuple[int, float, list[str]]] = []

    def report(row: dict[str, float]) -> None:
        told.append((row["epoch"], row["score"], [sweep.state(one) for one in sweep.students]))

    ray = SimpleNamespace(tune=SimpleNamespace(report=report))
    monkeypatch.setitem(sys.modules, "ray", ray)
    where = {"caches": [str(digits_cache)], "weights": [1.0], "data": sweep.inputs.source}
    where |= {"out": str(sweep.out), "device": "cpu", "cores": 1, "trackers": []}
    ray_tune._trial({"cohort": 0}, where, [[ray_tune._plain(one) for one in cohort]])
    best = max(row["top1_best"] for row in sweeps.rows(sweep))
    assert [(epoch, states) for epoch, _, states in told] == [
        (1, ["begun", "begun"]),
        (2, ["finished", "finished"]),
    ]
    assert best in [score for _, score, _ in told]
    ray_tune._trial({"cohort": 0}, where, [[ray_tune._plain(one) for one in cohort]])
    assert told[2:] == [(2, float("-inf"), ["finished", "finished"])]  # its worker had died


SECRET = "?sig=s3cr3t-of-a-signed-url"


@contextmanager
def signed(
    digits_cache: Path, digits: Path, folder: Path
) -> Iterator[tuple[RangeServer, str, str]]:
    """A server that answers signed URLs alone, and those of the cache and the data set."""
    shutil.copytree(digits_cache, folder / "c.zarr")
    shutil.copytree(digits, folder / "digits")
    with serve(folder) as server:
        server.query = SECRET
        yield server, f"{server.url}/c.zarr{SECRET}", f"{server.url}/digits{SECRET}"


def test_a_trial_opens_signed_urls_and_its_error_has_no_secret(
    own_log: None,
    digits_cache: Path,
    digits: Path,
    written: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    tune = MagicMock(with_parameters=lambda trial, **named: given.update(named))
    for name, module in (("ray", MagicMock(tune=tune)), ("ray.tune", tune)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "ray.tune.schedulers", MagicMock())
    monkeypatch.setattr(fsspec_client, "TRIES", 1)
    text = SMALL.replace('"test_efficientnet", ', "")
    with signed(digits_cache, digits, tmp_path / "web") as (server, cache, data):
        students = tuple(grid.load(str(written(text))))
        sweep = sweeps.Sweep(students, open_inputs(cache, data), tmp_path / "sweep", CPU)
        ray_tune._tuner(sweep, sweeps.prepare(sweep), False, 1)
        assert SECRET in given["settings"]["data"]
        ray_tune._trial({"cohort": 0}, **given)
        assert {sweep.state(one) for one in students} == {"finished"}
        server.query = "?sig=of tomorrow"
        with pytest.raises(KdcacheError, match="CacheNotFound") as refused:
            ray_tune._trial({"cohort": 0}, **given)
    assert SECRET not in str(refused.value)
    # a fault of ours, in whose traceback a library has put the URL
    monkeypatch.setattr(ray_tune, "_train_cohort", lambda *_: {}[data])
    with pytest.raises(KdcacheError, match="KeyError") as refused:
        ray_tune._trial({"cohort": 0}, **given)
    assert SECRET not in str(refused.value)


def test_what_asha_has_stopped_goes_on_without_it(
    digits_cache: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    sweep = opened(digits_cache, written(SMALL), tmp_path / "sweep", asha=True)
    assert len(sweeps.prepare(sweep)) == 1
    for student in sweep.students[:3]:
        sweeps.mark_stopped(sweep, student)
    assert [sweep.state(one) for one in sweep.students] == ["stopped"] * 3 + ["begun"]
    assert sweep.todo == [*sweep.students[3:]]
    assert len(replace(sweep, asha=False).todo) == 4
    facts = cost.sweep_cost(sweep, sweeps.rows(sweep), None)
    assert cost.lines(facts) == ["No student is finished yet: there is no cost to compare."]
    assert "stopped" in table.table(sweeps.rows(sweep), ["student", "temperature"])


def test_students_are_named_by_the_keys_that_differ() -> None:
    rows = [{"name": "net,lr=0.1", "student": "net", "lr": 0.1}, {"name": "net,lr=1", "lr": 1.0}]
    assert table.headers(rows, ["student", "lr"]) == ["student", "lr"]
    assert table.headers(rows, ["student", "lr", "opt"]) == ["student", "lr", "opt"]
    assert table.headers([{"name": "bold", "lr": 0.1}], ["lr"]) == ["name", "lr"]
    assert table.headers(rows, []) == ["name"]


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


def test_the_cores_of_a_trial() -> None:
    small, large = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 128.0, "GPU": 8.0}
    assert ray_tune.cores([small, large, {"CPU": 2.0}], 12, gpu=True) == 4
    assert ray_tune.cores([{"CPU": 2.0}], 12, gpu=False) == 1
    assert ray_tune.cores([{"CPU": 8.0}, {"CPU": 4.0}, {}], 2, gpu=False) == 4
    assert ray_tune.cores([{}], 3, gpu=True) == ray_tune.cores([{}], 3, gpu=False) == 1


def test_fit_is_one_run_and_a_tuner_may_stop_it(digits_cache: Path, tmp_path: Path) -> None:
    class Pruned(Exception):
        pass

    seen: list[float] = []

    def prune(row: dict[str, float]) -> None:
        seen.append(row["top1"])
        if len(seen) == 1:
            raise Pruned

    values = {"epochs": 2, "views_per_epoch": 1, "batch_size": 50, "temperature": 2}
    call = {"cache": digits_cache, "out": tmp_path / "run", "device": "cpu", "values": values}
    with pytest.raises(Pruned):
        fit("digits", **call, on_epoch=prune)
    result = fit("digits", **call, on_epoch=prune)
    assert len(seen) == 2
    assert result.top1 == seen[1]
    assert (result.folder / "model").is_dir()
    assert fit("digits", **call) == result
    with pytest.raises(KdcacheError, match="unknown key 'tmperature'"):
        fit("digits", **call | {"values": {"tmperature": 1}})


@pytest.mark.parametrize("library", ["optuna", "wandb"])
def test_what_the_page_on_sweeps_shows_of_others(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs run as they are printed, as far as is ours: `fit` takes what they say."""
    page = (ROOT / "docs/guide/sweeps.md").read_text("utf-8")
    [program] = re.findall(rf"```python\n(import {library}\n.*?)```", page, re.S)
    told: list[Any] = []

    def recorded(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(fit).bind(*arguments, **named).arguments
        recipe = recipes.load(bound["recipe"])
        recipes.build({**asdict(recipe), **bound["values"]}, "docs")
        bound["on_epoch"]({"epoch": 0, "loss": 1.0, "top1": 50.0})
        told.append(bound["out"])
        return SimpleNamespace(top1=50.0)

    monkeypatch.setattr("train.api.fit", recorded)
    if library == "optuna":
        fake: Any = MagicMock()
        trial = MagicMock(number=3)
        trial.suggest_float.side_effect = lambda name, low, high, **_: low
        trial.suggest_categorical.side_effect = lambda name, choices: choices[0]
        trial.should_prune.return_value = False
        fake.create_study.return_value.optimize = lambda objective, n_trials: objective(trial)
        monkeypatch.setitem(sys.modules, "optuna", fake)
        exec(program, {})
        trial.report.assert_called_once_with(50.0, 0)
        assert told == ["build/optuna/3"]
        return
    fake = MagicMock()
    each = fake.init.return_value.__enter__.return_value
    each.id, each.config, each.summary = "abc", {"temperature": 2.0, "loss": "dkd"}, {}
    monkeypatch.setitem(sys.modules, "wandb", fake)
    exec(program, {})
    each.log.assert_called_once_with({"epoch": 0, "loss": 1.0, "top1": 50.0})
    assert (told, each.summary) == (["build/wandb-sweep/abc"], {"top1": 50.0})


def test_what_nothing_beats() -> None:
    rows = [
        {"name": str(i), "state": "finished", "cost": c, "accuracy": a}
        for i, (c, a) in enumerate([(1, 50.0), (2, 40.0), (3, 70.0), (3, 60.0), (4, 70.0)])
    ]
    assert [r["name"] for r in table.pareto_front(rows, "cost", more=False)] == ["0", "2"]
    assert [r["name"] for r in table.pareto_front(rows, "cost", more=True)] == ["4"]


def test_a_picture_of_many_students(tmp_path: Path) -> None:
    """What does not fit is left out: matplotlib would warn, which is an error here."""
    rows = [
        {
            "name": f"s{i}", "student": f"a_network_of_a_long_name_{i % 30}.a1_in1k",
            "lr": 1e-5 * 1.1**i, "bold": i % 2 == 0, "state": "finished",
            "accuracy": 50.0 + i % 7, "parameters": 10**5 * (i + 1),
            "images_per_second": 100.0 + i, "cost_seconds": 0.0,
        }
        for i in range(120)
    ]  # fmt: skip
    for count in (2, 3, 120):
        path = tmp_path / f"{count}.png"
        assert plot.draw(rows[:count], ["student", "lr", "bold"], r"$\frac$", path)
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert not plot.draw(rows[:1], ["lr"], "t", path)


TWELVE = """
base = "digits"
epochs = 2
views_per_epoch = 1
batch_size = 10
model_ema_decay = 0.0
checkpoint_minutes = 0.005
[grid]
student = ["test_efficientnet", "test_byobnet", "test_vit"]
temperature = [1.0, 4.0]
seed = [0, 1]
"""


def results(out: Path) -> dict[str, int]:
    """When each finished run was finished."""
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/result.json")}


def begun(out: Path) -> set[str]:
    """Runs that have a checkpoint and are not finished."""
    return {p.parent.name for p in out.glob("*/checkpoint.pt")} - results(out).keys()


def steps(out: Path) -> dict[str, list[int]]:
    """The steps in each run's log: each of them once, or something was done twice."""
    return {
        p.parent.name: [json.loads(line)["step"] for line in p.read_text().splitlines()]
        for p in out.glob("*/steps.jsonl")
    }


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline


def same_weights(a: Path, b: Path) -> Iterator[bool]:
    for path in sorted(b.glob("*/model*/model.safetensors")):
        mine, theirs = load_file(a / path.relative_to(b)), load_file(path)
        yield all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.fixture(scope="module")
def undisturbed(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twelve")
    (folder / "grid.toml").write_text(TWELVE)
    subprocess.run(
        sweep_command(folder, digits_cache, folder / "out"), check=True, capture_output=True
    )
    return folder


def sweep_command(folder: Path, made: Path | str, out: Path, *more: str) -> list[str]:
    kdcache = str(Path(sys.executable).parent / "kdcache")
    return [
        kdcache, "sweep", str(folder / "grid.toml"), "--cache", str(made), "--out", str(out), *more
    ]  # fmt: skip


KILLED = """
import os, signal, sys
from pathlib import Path
from cache_tools.cli import main as cli
from train.trainer import checkpoint

out, count, number = Path(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
save = checkpoint.save

def killed(*arguments):
    save(*arguments)
    if len(list(out.glob("*/result.json"))) >= count:
        checkpoint.save = save
        os.kill(os.getpid(), number)

checkpoint.save = killed
sys.argv[0] = "kdcache"
cli.console()
"""
"""A sweep that is killed after a checkpoint, once so many students are finished."""


@pytest.mark.slow
def test_twelve_students_killed_twice_are_each_trained_once(
    undisturbed: Path, digits_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = sweep_command(undisturbed, digits_cache, out, "--together", "3")
    finished: dict[str, int] = {}
    for count, kill, code in ((3, signal.SIGKILL, -9), (7, signal.SIGINT, 130)):
        script = [sys.executable, "-c", KILLED, str(out), str(count), str(int(kill))]
        killed = subprocess.run([*script, *command[1:]], stderr=subprocess.PIPE, text=True)
        assert killed.returncode == code, killed.stderr
        now = results(out)
        assert len(now) >= count
        assert {name: now[name] for name in finished} == finished
        assert len(now) < 12
        finished = now
    begun = any(out.glob("*/checkpoint.pt"))  # not if its cohort was ready before it was killed
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert f"12 students, {len(finished)} of them finished" in last.stderr
    assert ("going on at epoch" in last.stderr) == begun
    assert {name: results(out)[name] for name in finished} == finished
    assert len(results(out)) == 12
    assert steps(out) == steps(undisturbed / "out")
    assert all(same_weights(out, undisturbed / "out"))


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


@pytest.mark.slow
def test_a_sweep_over_sizes_killed_twice_is_that_of_separate_runs(
    digits_cache: Path, tmp_path: Path
) -> None:
    """Killed after a student's checkpoint, when the others have none of this epoch."""
    (tmp_path / "grid.toml").write_text(SIZES)
    out, alone = tmp_path / "out", tmp_path / "alone"
    command = sweep_command(tmp_path, digits_cache, out)
    for _ in range(2):
        script = [sys.executable, "-c", KILLED, str(out), "0", str(int(signal.SIGKILL))]
        killed = subprocess.run([*script, *command[1:]], stderr=subprocess.PIPE, text=True)
        assert killed.returncode == -9, killed.stderr
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "going on at epoch" in last.stderr
    separate = sweep_command(tmp_path, digits_cache, alone, "--together", "1")
    subprocess.run(separate, check=True, capture_output=True)
    assert steps(out) == steps(alone)
    assert len(steps(out)) == 3
    assert all(same_weights(out, alone))


@pytest.mark.slow
def test_under_ray_a_killed_worker_is_started_again_and_a_stopped_driver_goes_on(
    undisturbed: Path, digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    """Cache and images are at signed URLs, whose secret is in no text and no file."""
    out, err = tmp_path / "out", tmp_path / "err"
    with signed(digits_cache, digits, tmp_path / "web") as (_, cache, data), err.open("wb") as log:
        more = ("--data", data, "--together", "3", "--engine", "ray")
        command = sweep_command(undisturbed, cache, out, *more)
        piped = {"stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, start_new_session=True, **piped)
        wait_for(lambda: len(results(out)) >= 3, process)
        wait_for(lambda: begun(out), process)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "ImplicitFunc" in " ".join(child.cmdline()) or "_trial" in " ".join(child.cmdline())
        ]
        assert workers
        workers[0].kill()
        wait_for(lambda: len(results(out)) >= 6, process)
        finished = results(out)
        os.killpg(process.pid, signal.SIGTERM)
        printed, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, printed) == (130, b""), err.read_text()
        assert "What is finished is safe; run the same command again to go on" in err.read_text()
        process = subprocess.Popen(command, **piped)
        printed, _ = process.communicate(timeout=PATIENCE)
    text = err.read_text()
    assert process.returncode == 0, text
    assert ("Traceback" in text, "s3cr3t" in text) == (False, False)
    assert [p for p in out.rglob("*") if p.is_file() and b"s3cr3t" in p.read_bytes()] == []
    assert {name: results(out)[name] for name in finished} == finished
    assert len(results(out)) == 12
    assert steps(out) == steps(undisturbed / "out")
    assert all(same_weights(out, undisturbed / "out"))
    assert printed.decode().startswith("student ")  # Tune's own words are not on stdout
