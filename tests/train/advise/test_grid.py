"""The grid of `kdcache advise`: bytes of a real cache, the cheapest setting, what is left out."""

from pathlib import Path

import numpy as np
import pytest

from cache_tools.importers import dense as importer
from cache_tools.spec.targets import TargetSpec
from cache_tools.store import info
from train import recipe as recipes
from train.advise import grid, picture, sample
from train.advise.grid import Grid, Row

STUDENT = {"student": "x", "epochs": 1, "temperature": 2.0}


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 views of 100 classes."""
    path = tmp_path_factory.mktemp("advise") / "logits.npy"
    np.save(path, 3 * np.random.default_rng(0).standard_normal((400, 100)).astype("f4"))
    return path


@pytest.fixture(scope="module")
def rows(logits: Path) -> list[Row]:
    few = Grid((0.0, 1e-2), (5, 20, 50, 100, 500), (63, 127))
    return grid.measure(sample.of_file(logits, 400), recipes.load(STUDENT), TargetSpec(), few)


def test_bytes_are_those_of_a_cache(rows: list[Row], logits: Path, tmp_path: Path) -> None:
    for row in (rows[0], next(r for r in rows if r.targets.k_max == 20 and not r.own)):
        store = importer.run(logits, tmp_path / f"{row.targets.k_max}.zarr", row.targets, "mine")
        facts = info.info(store)
        assert row.bytes_per_view == pytest.approx(facts["bytes_per_view"], rel=0.02)
        assert row.kept == pytest.approx(facts["kept_classes_mean"], abs=1e-4)


def test_a_grid_has_every_setting_once(rows: list[Row]) -> None:
    own, *others = rows
    assert own.own
    assert not any(row.own for row in others)
    assert own.targets == TargetSpec()
    found = [(r.targets.tau, r.targets.k_max, r.targets.levels, r.tail) for r in others]
    assert len(set(found)) == len(found)
    assert {k for tau, k, *_ in found if tau == 0} == {5, 20, 50, 100}  # of 500, all there are
    most = max(k for tau, k, *_ in found if tau)
    assert most < 100  # above tau = 0.01 there are fewer: larger k_max keep the same
    assert {tail for *_, tail in found} == {"uniform", "bucket", "zero"}
    assert all(row.targets.temperatures == (1.0, 2.0) for row in others)


def test_the_cheapest_setting_has_the_fewest_bytes_under_the_error(rows: list[Row]) -> None:
    best = grid.cheapest(rows, 0.1)
    assert best is not None
    assert best.error <= 0.1
    assert all(row.error > 0.1 for row in rows if row.bytes_per_view < best.bytes_per_view)
    assert grid.cheapest(rows, 0.0) is None
    front = grid.front(rows)
    assert best in front
    assert [r.bytes_per_view for r in front] == sorted(r.bytes_per_view for r in front)
    assert [r.error for r in front] == sorted((r.error for r in front), reverse=True)
    for line in picture.table(rows, best).splitlines():
        if "cheapest" in line:
            assert f"{best.bytes_per_view:.1f}" in line
            break
    else:
        pytest.fail("the cheapest setting is not marked")


@pytest.mark.parametrize(
    ("loss", "key"), [("dkd", "targets.true_class=true"), ("dist", "targets.tail_square=true")]
)
def test_losses_are_measured_with_what_they_need_of_a_cache(
    loss: str, key: str, logits: Path
) -> None:
    found = grid.measure(
        sample.of_file(logits, 300),
        recipes.load(STUDENT | {"loss": loss}),
        TargetSpec(),
        Grid((0.0,), (10,), (127,)),
    )
    assert [(row.own, row.tail) for row in found] == [(True, "uniform"), (False, "uniform")]
    assert key in found[1].keys
    assert key not in found[0].keys


def test_few_samples_are_estimated(logits: Path) -> None:
    few, many = (sample.of_file(logits, count) for count in (255, 256))
    assert not grid.is_measured(few)
    assert grid.is_measured(many)


def test_views_of_one_sample_count_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 200, 10)).astype("f4")
    np.save(tmp_path / "v.npy", values)
    every = sample.of_file(tmp_path / "v.npy", 600)
    assert len(every.row_B) == 600
    assert not grid.is_measured(every)
    views = sample.of_file(tmp_path / "v.npy", 100)
    assert sorted(views.row_B.tolist()) == list(range(0, 200, 2))
    assert (views.logits_BC == values[np.arange(100) % 3, views.row_B]).all()
