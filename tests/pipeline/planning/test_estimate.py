"""`kdcache plan` with data and teacher: hours from a few real batches; `--limit` for a try-out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data.open import open_images
from cache_tools.errors import DataError
from cache_tools.store.cache import Cache
from cache_tools.targets import codec
from pipeline import recipe as recipes
from pipeline import run as running
from pipeline.planning import estimate, plan
from pipeline.recipe import TeacherSource
from pipeline.teacher.forward import Forward
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.05)


def test_hours_are_views_over_the_measured_rate(
    kdcache: Command, digits: Path, teacher: Path
) -> None:
    outcome = kdcache("plan", "digits", "--data", digits, "--teacher", teacher, "--json")
    assert outcome.code == 0, outcome
    facts = json.loads(outcome.out)
    assert facts["samples"] == 100
    assert facts["forwards"] == 2000
    render, ask = facts["render_views_per_s"], facts["teacher_views_per_s"]
    assert min(render, ask) > 0
    assert facts["views_per_s"] == pytest.approx(1 / (1 / render + 1 / ask), rel=0.01)
    assert facts["hours"] == pytest.approx(2000 / facts["views_per_s"] / 3600, rel=0.01, abs=1e-4)
    assert facts["bound_by"] == ("teacher" if ask < render else "rendering")
    assert facts["per"].startswith("CPU of ")
    assert facts["kept_classes"] == 10.0
    text = kdcache("plan", "digits", "--data", digits, "--teacher", teacher)
    assert text.code == 0
    assert "bound_by" in text.out


def test_without_a_teacher_the_plan_is_as_before(kdcache: Command, digits: Path) -> None:
    facts = json.loads(kdcache("plan", "digits", "--data", digits, "--json").out)
    assert facts == plan.plan(recipes.load("digits"), 100, 0)
    assert "hours" not in facts
    assert "views_per_s" not in facts


def test_the_bytes_are_those_of_what_the_teacher_keeps(digits: Path, teacher: Path) -> None:
    """A threshold drops classes; the plan then reckons with what was kept, not with k_max."""
    recipe = recipes.load("digits", ["targets.tau=0.1", "targets.k_min=1"])
    images = open_images(str(digits), "train")
    measured = running.measure(recipe, images, [TeacherSource(str(teacher))], "cpu")
    assert 1.0 <= measured["kept_classes"] < 9.9
    facts = plan.plan(recipe, 100, measured.pop("classes"), measured=measured)
    expected = codec.expected_bytes(10, measured["kept_classes"], recipe.targets)
    assert facts["bytes_per_view"] == round(expected, 1)
    untrained = recipes.load("digits", ["dataset.labels=ignore"])
    sources = [TeacherSource("test_resnet")]
    assert "kept_classes" not in running.measure(untrained, images, sources, "cpu", True)


def test_the_views_that_are_timed_are_those_of_stage_1(
    digits: Path, teacher: Path, digits_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels and mixing partners as the teacher sees them, in batches of the recipe."""
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    real = Forward.__call__

    def call(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        shown.append((pixels.copy(), partner.copy()))
        return real(self, pixels, partner, mix, label)

    monkeypatch.setattr(Forward, "__call__", call)
    recipe = recipes.load("digits", ["views.mixup=0.5", "batch_size=16", "num_views=2"])
    images = open_images(str(digits), "train")
    running.measure(recipe, images, [TeacherSource(str(teacher))], "cpu")
    assert len(shown) >= 3
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        own = estimate.Sample(recipe, images).pixels(pool, 0)
    views = [view[:16].tobytes() for view in own]
    assert {pixels.tobytes() for pixels, _ in shown} <= set(views)
    assert {len(partner) for _, partner in shown} == {16}


def test_mistakes_are_reported_before_anything_is_measured(
    kdcache: Command, digits: Path, teacher: Path
) -> None:
    outcome = kdcache("plan", "digits", "--teacher", teacher)
    assert outcome.code == 2
    assert "pass --data" in outcome.err
    arguments = ("--data", digits, "--teacher", "test_resnet", "--random-weights")
    outcome = kdcache("plan", "digits", *arguments)
    assert outcome.code == 1
    assert "10 classes, the teacher predicts 1000" in outcome.err


def test_an_image_that_is_broken_is_named(digits: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    recipe = recipes.load("digits", ["dataset.labels=ignore"])
    images = open_images(str(tmp_path), "train")
    with pytest.raises(DataError, match="x"):
        running.measure(recipe, images, [TeacherSource(str(teacher))], "cpu")


def test_parts_of_a_try_out_count(
    kdcache: Command, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    make = ("cache", "digits", "--data", digits, "--teacher", teacher, "--out", out, "num_views=4")
    first = kdcache(*make, "--limit", 2)
    assert first.code == 0
    assert "2 of 4 parts" in first.out
    store = Cache.open(out)
    done = {p: (out / p.record).read_bytes() for p in store.parts() if store.present(p)}
    assert len(done) == 2
    rest = kdcache(*make)
    assert "4 of 4 parts" in rest.out
    assert "2 of 4 parts to make" in rest.err
    assert {p: (out / p.record).read_bytes() for p in done} == done
    assert kdcache("verify", out, "--data", digits).code == 0


def test_the_first_turn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles and warms up; the others do ten views in half a second."""
    now = [0.0]
    monkeypatch.setattr(estimate, "SECONDS", 3.0)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])

    def work(turn: int) -> int:
        now[0] += 0.5 if turn else 60.0
        return 10

    told: list[int] = []
    assert estimate._timed(work, told.append) == 20.0
    assert sum(told) == 3
