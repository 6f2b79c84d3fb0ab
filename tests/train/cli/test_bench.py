"""`kdcache bench loader` names the stage that binds and what helps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tests.helpers.outcome import Outcome
from train.cli import bench
from train.trainer import stage_profile
from train.trainer.stage_profile import Stages

EVEN = Stages(
    read=1e-5, decode=1e-3, resize=4e-4, operations=2e-4, loader=4e-4, transfer=1e-5, student=1e-4
)


@pytest.mark.parametrize(
    ("change", "binds", "advice"),
    [
        ({}, "decode", "kdcache beton SRC FILE --raw"),
        ({"decode": 0.0}, "resize", "--short-side 256"),
        ({"read": 9e-4, "loader": 1e-3}, "read", "--data-cache"),
        ({"operations": 2e-3}, "operations", "lighter operations"),
        ({"student": 5e-3}, "student", "smaller student"),
        ({"student": 5e-4, "transfer": 6e-4}, "transfer", "batch_size"),
        ({"student": None}, "decode", "--raw"),
    ],
)
def test_what_binds(change: dict[str, float | None], binds: str, advice: str) -> None:
    found = bench.verdict(replace(EVEN, **change), cores=4)
    assert found["binds"] == binds
    assert found["conclusion"].startswith(f"{binds} bind")
    assert advice in found["conclusion"]
    assert found["seconds_per_view"]["read"] == (change.get("read") or EVEN.read)
    assert found["seconds_per_view"]["decode"] * 4 == pytest.approx(change.get("decode", 1e-3))


def test_the_loader_of_a_cache(
    kdcache: Callable[..., Outcome], digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    arguments = ("--cache", digits_cache, "--data", digits, "--device", "cpu")
    recipe = ("digits", "views_per_epoch=2", "threads=1")
    told = kdcache("bench", "loader", *recipe, *arguments, "--json")
    assert told.code == 0, told.err
    facts = json.loads(told.out)
    stages = {"read", "decode", "resize", "operations", "transfer", "student"}
    assert set(facts["seconds_per_view"]) == stages
    assert facts["binds"] in stages
    assert facts["student"] == "test_efficientnet"
    assert (facts["threads"], facts["batch_size"], facts["read_from"]) == (1, 64, "memory")
    assert min(facts["loader_images_per_second"], facts["student_images_per_second"]) > 0
    alone = kdcache("bench", "loader", *arguments)
    assert alone.code == 0, alone.err
    assert "student" not in alone.out.splitlines()[-2]
    assert alone.out.splitlines()[-1].startswith(("read", "decode", "resize", "operations"))


def test_the_decoding_of_jpegs_is_measured(
    kdcache: Callable[..., Outcome],
    digits_cache: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(stage_profile, "_read", lambda _, rows: (1e-5, [encoded] * len(rows)))
    told = kdcache("bench", "loader", "--cache", digits_cache, "--data", digits, "--device", "cpu")
    assert told.code == 0, told.err


def test_a_loader_without_a_cache(kdcache: Callable[..., Outcome]) -> None:
    outcome = kdcache("bench", "loader")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Pass --cache" in outcome.err
