"""What a run says while it learns: each row once, whatever happened to the run."""

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cache_tools.runtime import progress
from cache_tools.runtime.signals import StopRequest
from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train import run_dir
from train.data.inputs import Inputs, open_inputs
from train.distributed import ALONE, World
from train.report import history
from train.trainer import cadence, checkpoint, log, loop, trackers

FAST = ["epochs=2", "views_per_epoch=2", "batch_size=20", "task_loss_weight=0.5"]
CLOCK = ("images_per_second", "data_wait")
Command = Callable[..., Outcome]


def rows(folder: Path, name: str = "steps.jsonl") -> list[dict[str, float]]:
    lines = (folder / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag.partition("/")[2] not in CLOCK]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


@functools.cache
def opened(made: Path) -> Inputs:
    return open_inputs(made, None)


def begin(made: Path, out: Path, *also: str) -> None:
    """Train, or go on, in this process; KeyboardInterrupt where the run is stopped."""
    recipe, inputs = recipes.load("digits", FAST), opened(made)
    run_dir.init_run(out, recipe, inputs, fresh=False)
    loop.train(recipe, inputs, out, torch.device("cpu"), trackers=also)


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which every file of TensorBoard's has a second of its own, without waiting."""
    now = [1e9]

    def tick(seconds: float = 1.0) -> float:
        now[0] += seconds
        return now[0]

    clock = SimpleNamespace(time=lambda: now[0], sleep=tick)
    monkeypatch.setattr(trackers, "time", clock)
    return now


def test_two_files_of_tensorboard_are_never_of_one_second(
    tmp_path: Path, seconds: list[float]
) -> None:
    """Their names end with a counter: 10 would be read before 9."""
    (tmp_path / "events.out.tfevents.1000000000.zzz.9.9").touch()
    trackers.tensorboard(tmp_path, 3)
    assert seconds[0] >= 1e9 + 1
    assert sorted(p.name[20:30] for p in tmp_path.iterdir()) == ["1000000000", "1000000001"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadence, "LOG_STEPS", 4)


@pytest.fixture(scope="module")
def whole(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cadence, "LOG_STEPS", 4)
        begin(digits_cache, out)
    return out


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run stops after its first step, as if by Ctrl-C."""
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))


def test_rows_stand_every_few_steps_and_at_the_end_of_an_epoch(whole: Path) -> None:
    found = rows(whole)
    assert [(r["epoch"], r["step"]) for r in found] == [
        (0, 4), (0, 8), (0, 10), (1, 14), (1, 18), (1, 20)
    ]  # fmt: skip
    for row in found:
        assert row["loss"] == pytest.approx(row["kd_loss"] + 0.5 * row["task_loss"])
    assert found[0]["lr"] > found[-1]["lr"] > 0
    of_epoch = [4 * found[0]["loss"] + 4 * found[1]["loss"] + 2 * found[2]["loss"]]
    assert rows(whole, "log.jsonl")[0]["loss"] == pytest.approx(of_epoch[0] / 10)
    full = json.loads((whole / "steps.jsonl").read_text().splitlines()[0])
    assert full["images_per_second"] > 0
    assert 0 <= full["data_wait"] <= 1


def test_tensorboard_shows_the_same_rows(whole: Path) -> None:
    curves, found = board(whole), rows(whole)
    for name in ("loss", "kd_loss", "task_loss", "lr"):
        expected = [(row["step"], pytest.approx(row[name])) for row in found]
        assert curves[f"train/{name}"] == expected
    epochs = [
        (10 * i + 10, pytest.approx(r["top1"])) for i, r in enumerate(rows(whole, "log.jsonl"))
    ]
    assert curves["epoch/top1"] == epochs


@pytest.mark.usefixtures("stops")
def test_a_run_that_stops_after_every_step_has_the_same_rows_once(
    digits_cache: Path, whole: Path, tmp_path: Path
) -> None:
    out, stops = tmp_path / "run", 0
    while not (out / "result.json").exists():
        try:
            begin(digits_cache, out)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 20
    for name in ("steps.jsonl", "log.jsonl"):
        assert rows(out, name) == rows(whole, name)
    assert board(out) == board(whole)


def test_what_was_written_after_the_last_checkpoint_is_taken_back(
    digits_cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the second epoch: rows are there that the checkpoint knows nothing of."""
    out, save, count = tmp_path / "run", checkpoint.save, 0

    def killed(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("killed before the second checkpoint was there")
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(RuntimeError, match="killed"):
        begin(digits_cache, out)
    assert len(rows(out)) == len(rows(out, "log.jsonl")) * 3 == 6
    with (out / "steps.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')  # and half a line
    monkeypatch.setattr(checkpoint, "save", save)
    begin(digits_cache, out)
    for name in ("steps.jsonl", "log.jsonl"):
        assert rows(out, name) == rows(whole, name)
    assert board(out) == board(whole)


@pytest.mark.slow
def test_kill_9_at_any_time(digits_cache: Path, tmp_path: Path) -> None:
    long = ["epochs=3", "views_per_epoch=4", "batch_size=4", "checkpoint_minutes=0.01"]
    kdcache = str(Path(sys.executable).parent / "kdcache")
    command = [kdcache, "train", "digits", "--cache", str(digits_cache), *long, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    out = tmp_path / "run"
    for seconds in (0.5, 1.5, 2.5, 3.5):
        with subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (out / "steps.jsonl").exists():
                time.sleep(0.01)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    subprocess.run([*command, str(out)], check=True)
    for name in ("steps.jsonl", "log.jsonl"):
        assert rows(out, name) == rows(tmp_path / "whole", name)
    assert board(out) == board(tmp_path / "whole")
    weights = [load_file(f / "model/model.safetensors") for f in (out, tmp_path / "whole")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize(
    "content", ["", '{"step": "1"}', '{"step": 1, "loss": null}', "[1]", "1" * 2**20]
)
def test_rows_that_no_run_writes_are_cut(tmp_path: Path, content: str) -> None:
    path, row = tmp_path / "steps.jsonl", '{"step": 1, "loss": 0.5}\n'
    path.write_text(f"{row}{content}\n{row}")
    with path.open("ab") as file:
        file.truncate(2**30)  # zeros without an end of line
    tracemalloc.start()
    try:
        assert history.read(path)[0] == {"step": 1, "loss": 0.5}
        world, progress = ALONE, checkpoint.Progress(step=1)
        with log.open_log(tmp_path, progress, 1, world):
            pass
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert path.read_text() == row


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    for world, files in ((World(1, 2), []), (ALONE, ["log.jsonl", "steps.jsonl", "tensorboard"])):
        place = checkpoint.Progress(terms={"loss": [3.0, 2]}, history=[{"epoch": 0, "loss": 1.5}])
        with log.open_log(tmp_path, place, 0, world) as book:
            book.steps(0, 2, 20, 0.1)
            book.epoch(2)
        assert sorted(p.name for p in tmp_path.iterdir()) == files
        assert place.terms == {}


class FakeRun:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class Fake(ModuleType):
    """As much of W&B as is used, where W&B itself need not be installed."""

    Error = type("Error", (Exception,), {})

    def __init__(self, mode: str, known: bool) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self._mode, self._known = mode, known

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self._mode))

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self._known

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> FakeRun:
        active = [run for run in self.runs if run.exit_code is None]
        if active and options["settings"].get("reinit") != "create_new":
            return active[-1]  # as W&B does
        self.runs.append(FakeRun(options))
        return self.runs[-1]


@pytest.mark.usefixtures("stops")
def test_wandb_sees_one_run_however_often_it_is_stopped(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Fake("offline", known=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        begin(digits_cache, out, "wandb")
    monkeypatch.setattr(StopRequest, "requested", False)
    begin(digits_cache, out, "wandb")
    first, second = wandb.runs
    assert first.options["id"] == second.options["id"]
    assert first.options["resume"] == "allow"
    assert first.options["config"]["student"] == "test_efficientnet"
    assert (first.exit_code, second.exit_code) == (1, 0)
    losses = [(step, v["train/loss"]) for step, v in second.logged if "train/loss" in v]
    assert losses == [(row["step"], row["loss"]) for row in rows(out)]
    assert [step for step, v in second.logged if "epoch/top1" in v] == [10, 20]


def test_every_student_of_a_cohort_is_a_run_of_its_own(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Fake("offline", known=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    inputs = open_inputs(digits_cache, None)
    recipe = recipes.load("digits", ["epochs=1", "views_per_epoch=1", "batch_size=50"])
    students = [(tmp_path / f"T{t}", replace(recipe, temperature=t)) for t in (1.0, 4.0)]
    for out, each in students:
        run_dir.init_run(out, each, inputs, fresh=False)
    loop.train_cohort(students, inputs, torch.device("cpu"), trackers=("wandb",))
    assert [one.options["config"]["temperature"] for one in wandb.runs] == [1.0, 4.0]
    assert [one.exit_code for one in wandb.runs] == [0, 0]
    for (out, _), one in zip(students, wandb.runs, strict=True):
        losses = [v["train/loss"] for _, v in one.logged if "train/loss" in v]
        assert losses == [row["loss"] for row in rows(out)]


def test_without_wandb_a_message_has_the_install_command(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "digits", "--cache", digits_cache, "--out", tmp_path / "run", "--log")
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = kdcache(*arguments, "wandb")
    assert missing.code == 2
    assert "pip install 'kdcache[wandb]'" in missing.err
    monkeypatch.setitem(sys.modules, "wandb", Fake("online", known=False))
    stranger = kdcache(*arguments, "wandb")
    assert stranger.code == 2
    assert "wandb login" in stranger.err
    assert "WANDB_MODE=offline" in stranger.err
    unknown = kdcache(*arguments, "paper")
    assert unknown.code == 2
    assert "no tracker 'paper' (--log, in Python log_to=). Known are: wandb" in unknown.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_itself_offline(digits_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    kdcache = str(Path(sys.executable).parent / "kdcache")
    command = [kdcache, "train", "digits", "--cache", str(digits_cache), "--out", str(out), *FAST]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    subprocess.run([*command, "--log", "wandb"], check=True, env=environment)
    name = json.loads((out / "wandb.json").read_text())["id"]
    assert list((out / "wandb").glob(f"offline-run-*/run-{name}.wandb"))


def test_the_progress_line_has_loss_and_waiting(
    digits_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress._Logged, "_next", 0.0)
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="kdcache"):
        begin(digits_cache, tmp_path / "run")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("kd seed 0")]
    loss = f"loss {rows(tmp_path / 'run')[0]['loss']:.3f}"
    assert any(loss in line and "% waiting" in line and "s left" in line for line in lines)


def test_fresh_begins_new_logs(kdcache: Command, digits_cache: Path, tmp_path: Path) -> None:
    arguments = ("train", "digits", "--cache", digits_cache, "--out", tmp_path / "run", *FAST)
    assert kdcache(*arguments).code == 0
    before = rows(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    assert kdcache(*arguments, "--fresh").code == 0
    assert rows(tmp_path / "run") == before
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
