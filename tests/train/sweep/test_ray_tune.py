"""Sweeps under Ray Tune: reports, secrets, students that ASHA stops, killed workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import torch

from cache_tools.errors import KdcacheError
from cache_tools.storage import fsspec_client
from tests.helpers.range_server import RangeServer, serve
from tests.helpers.stage1 import PATIENCE
from tests.helpers.sweeps import (
    SMALL,
    Command,
    opened,
    results,
    same_weights,
    steps,
    sweep_command,
)
from train.data.inputs import open_inputs
from train.sweep import cost, grid, ray_tune, table
from train.sweep import runner as sweeps

CPU = torch.device("cpu")


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


def test_the_cores_of_a_trial() -> None:
    small, large = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 128.0, "GPU": 8.0}
    assert ray_tune.cores([small, large, {"CPU": 2.0}], 12, gpu=True) == 4
    assert ray_tune.cores([{"CPU": 2.0}], 12, gpu=False) == 1
    assert ray_tune.cores([{"CPU": 8.0}, {"CPU": 4.0}, {}], 2, gpu=False) == 4
    assert ray_tune.cores([{}], 3, gpu=True) == ray_tune.cores([{}], 3, gpu=False) == 1


def begun(out: Path) -> set[str]:
    """Runs that have a checkpoint and are not finished."""
    return {p.parent.name for p in out.glob("*/checkpoint.pt")} - results(out).keys()


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline


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
