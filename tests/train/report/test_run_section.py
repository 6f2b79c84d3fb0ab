"""Runs in a report: their predictions by class, their history, and many of them."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.spec import class_names
from tests.helpers.outcome import Outcome
from tests.helpers.reports import Page, student, subjects_of, swept
from train import run_dir
from train.report import history, run_facts

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(digits_cache, tmp_path_factory.mktemp("run") / "kd-seed0")


def test_a_run_is_reported_by_class(
    kdcache: Command, finished: Path, digits: Path, tmp_path: Path
) -> None:
    facts = subjects_of(kdcache("report", finished, "--json"))[0]
    seen = kdcache("eval", finished, "--views", 2048, "--json")
    measured = json.loads(seen.out)
    assert facts["measured"]["data"] == measured["data"]
    labels, teacher = facts["answers"]
    assert (labels["due"], teacher["due"]) == ("label", "teacher")
    assert labels["pictures"] == 797
    assert labels["agreement"] == pytest.approx(
        measured["data"][0]["networks"]["student_ema"]["top1"]
    )
    assert teacher["pictures"] == 400
    for one in (labels, teacher):
        counts = np.array(one["matrix"]["counts"])
        assert counts.sum() == one["pictures"]
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(one["agreement"])
    assert len(facts["epochs"]) == 2


def test_confusions_name_synsets(kdcache: Command, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["class_names"] = class_names.synsets(1000)[:10]
    run_dir.write_json(run / "config.json", config)
    facts = subjects_of(kdcache("report", run, "--json"))[0]
    assert facts["answers"][0]["matrix"]["names"][0] == "tench (n01440764)"


def test_confusions_of_many_classes_are_the_worst_ones() -> None:
    pairs = Counter({(c, c): 9 for c in range(1000)} | {(c, c + 1): 1 for c in range(0, 999, 2)})
    pairs[7, 3] = 50
    found = run_facts.classes(pairs, lambda number: f"class {number}")
    assert "matrix" not in found
    assert found["confusions"][0] == {
        "due": "class 7", "answer": "class 3", "times": 50, "share": pytest.approx(100 * 50 / 59),
    }  # fmt: skip
    assert found["worst"][0]["name"] == "class 7"
    assert len(found["worst"]) == 24
    assert found["agreement"] == pytest.approx(100 * 9000 / (9000 + 500 + 50))


def test_several_runs_and_a_folder_of_them(
    kdcache: Command, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "both" / "kd-seed0")
    other = shutil.copytree(finished, tmp_path / "both" / "labels-seed0")
    config = json.loads((other / "config.json").read_text())
    config["recipe"]["mode"] = "labels"
    run_dir.write_json(other / "config.json", config)
    compared = {
        "seeds": [0], "student": "s", "teacher": "t", "transfer_images": 100,
        "kd": {"top1": [93.0], "mean": 93.0, "deviation": 0.0},
        "labels": {"top1": [88.0], "mean": 88.0, "deviation": 0.0},
        "gain": {"each": [5.0], "mean": 5.0, "standard_error": 0.0},
    }  # fmt: skip
    (tmp_path / "both" / "comparison.json").write_text(json.dumps(compared))
    out = tmp_path / "report.html"
    outcome = kdcache("report", tmp_path / "both", "--views", 0, "--out", out)
    assert outcome.out.startswith(f"{out}: 1 comparison, 2 runs, ")
    text = Page(out.read_text()).text
    assert "2 runs" in text
    assert "Gains by seed: +5.0 points" in text
    assert "Gain +5.0 points with one seed." in text
    assert "Its predictions are left out (--views 0)" in text


@pytest.mark.slow
def test_sixty_runs_and_students_stay_legible(
    kdcache: Command, finished: Path, tmp_path: Path
) -> None:
    """No legend over its chart (matplotlib warns, an error here), no caption of a page."""
    for i in range(60):
        ours = ("tensorboard", "model*")
        folder = tmp_path / "runs" / f"arm{i // 2}-of-a-rather-long-name-seed{i % 2}"
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(*ours))
    sweep = swept(tmp_path / "sweep") / "sweep.json"
    facts = json.loads(sweep.read_text())
    facts["students"] = [
        facts["students"][0] | {"student": f"student number {i}", "temperature": 1 + i / 10,
                                "parameters": 1000 * 1.2**i, "state": "finished\x1b"}
        for i in range(60)
    ]  # fmt: skip
    sweep.write_text(json.dumps(facts))
    out = tmp_path / "report.html"
    outcome = kdcache("report", tmp_path / "runs", sweep.parent, "--views", 0, "--out", out)
    assert outcome.code == 0, outcome.err
    page = Page(out.read_text())
    labels = [one["aria-label"] or "" for one in page.having("svg")]
    assert max(map(len, labels)) < 1200
    assert "Accuracy at the end, the best 40. Of 60 runs" in " ".join(labels)
    assert "arm10-of-a-rather…me-seed1" in page.text
    assert "others" in page.text
    assert "student number 59" in page.text


def test_a_run_shows_why_it_stopped(kdcache: Command, finished: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(finished, tmp_path / "begun")
    shutil.rmtree(begun / "model")
    (begun / "result.json").rename(begun / "checkpoint.pt")
    rows = [json.dumps({"epoch": epoch, "loss": 1.0}) for epoch in range(900)]
    (begun / "log.jsonl").write_text("\n".join(rows) + "\n")
    (begun / "failed.json").write_text('{"kind": "NonFinite", "error": "the loss is nan"}')
    out = tmp_path / "report.html"
    assert kdcache("report", begun, "--out", out).code == 0
    assert "not finished, after 900 of them (diverged: the loss is nan)" in out.read_text()


def test_a_long_history_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    rows = [{"epoch": i // 100, "step": i, "loss": float(i), "bad": None} for i in range(5000)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + '\n{"step": 50')
    found = history.read(path)
    assert history.MOST <= len(found) < 2 * history.MOST + 1
    assert found[-1]["step"] == 4999
    steps, losses = history.column(found, "step", "loss")
    assert losses == sorted(losses)
    assert all(abs(a - b) < 16 for a, b in zip(steps, losses, strict=True))
    assert history.read(tmp_path / "none") == []
