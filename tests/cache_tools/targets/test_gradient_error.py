"""Warnings of targets that keep too few classes: the estimate, and when it is logged by whom."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense, gradient_error
from cache_tools.targets.codec import DecodedTargets
from cache_tools.targets.gradient_error import Use, cosine, estimate, shortfalls
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
B, C = 400, 1000
RULE = "the targets keep too few classes"


def logits(spread: float = 2.5) -> np.ndarray:
    """As of a network of 1,000 classes: a bulk, and a few classes far above it."""
    random = np.random.default_rng(0)
    rank = np.argsort(np.argsort(random.standard_normal((B, C)), axis=1), axis=1)
    return spread * (random.standard_normal((B, C)) * 0.6 - np.log1p(rank) / 1.2)


def targets(spec: TargetSpec, values: np.ndarray) -> DecodedTargets:
    return codec.decode(codec.encode(dense.sparsify(values, spec), spec, C), spec)


def measured(found: DecodedTargets, spec: TargetSpec, values: np.ndarray, t: float) -> float:
    """Relative error of a late student's gradient q - p, by the dense formula."""
    noise = np.random.default_rng(1).standard_normal(values.shape)
    q, p = dense.softmax(values + noise, t), dense.softmax(values, t)
    return float(np.linalg.norm(dense.densify(found, spec, C, t) - p) / np.linalg.norm(q - p))


@pytest.mark.parametrize("k", [5, 20, 100])
@pytest.mark.parametrize(
    ("temperatures", "t"),
    [((1.0,), 1.0), ((1.0, 2.0), 2.0), ((1.0, 4.0), 4.0), ((1.0, 2.0, 4.0), 4.0), ((1.0,), 4.0)],
)
def test_the_estimate_is_near_the_measured_error(
    temperatures: tuple[float, ...], t: float, k: int
) -> None:
    values, spec = logits(), TargetSpec(k, 0.0, k, temperatures=temperatures)
    found = targets(spec, values)
    error = measured(found, spec, values, t)
    ratio = estimate(found, spec, C, t) / error
    assert (0.6 < ratio < 1.7) or max(error, ratio * error) < 0.15


def test_masses_at_half_the_temperature_make_it_exact() -> None:
    """Σp² at T is the mass at T/2: the error of the targets themselves, not of the student."""
    values, spec = logits(), TargetSpec(20, 0.0, 20, temperatures=(1.0, 2.0))
    found, t = targets(spec, values), 2.0
    p = dense.softmax(values, t)
    square = (p**2).sum(axis=1)
    gradient = t**-2 * (square - 2 * (p**3).sum(axis=1) + square**2)
    error = np.square(dense.densify(found, spec, C, t) - p).sum()
    exact = np.sqrt(error / gradient.sum())
    assert estimate(found, spec, C, t) == pytest.approx(exact, rel=0.03)


def test_a_target_of_all_classes_has_no_error() -> None:
    values = logits()[:, :10]
    spec = TargetSpec(10, 0.0, 10, temperatures=(1.0,))
    found = codec.decode(codec.encode(dense.sparsify(values, spec), spec, 10), spec)
    for tail in ("uniform", "bucket", "zero"):
        assert estimate(found, spec, 10, 5.0, tail) < 0.05
    assert shortfalls(found, spec, 10, [Use(5.0, 5.0), Use(4.0, 1.0, "zero")], "c") == []


def test_stored_squares_bound_the_error_at_one() -> None:
    values = logits(1.0)
    plain, square = (
        TargetSpec(5, 0.0, 5, temperatures=(1.0,), tail_square=s) for s in (False, True)
    )
    error = measured(targets(plain, values), plain, values, 1.0)
    found = estimate(targets(square, values), square, C, 1.0)
    assert found == pytest.approx(error, rel=0.25)


def test_each_kind_is_described_once() -> None:
    values, spec = logits(), TargetSpec(20, 0.0, 20)
    found = targets(spec, values)
    students = [
        *(Use(t, t) for t in (1.0, 2.0, 6.0, 8.0, 8.0)),
        *(Use(t, t, "zero") for t in (2.0, 4.0)),
        Use(2.0, 1.0),
    ]
    lines = shortfalls(found, spec, C, students, "c.zarr")
    assert [line.split(",")[0].split(" and")[0][:24] for line in lines] == [
        "tail=zero at T = 4 leave",
        "T = 6; 8; 2 to 1",
        "the targets keep too few",
    ]
    assert "targets.temperatures=[1.0, 2.0, 6.0, 8.0]" in lines[1]
    assert "for T = 6 (0." in lines[2]
    assert "T = 8 (0." in lines[2]
    assert "T = 1" not in lines[2]
    assert "kdcache advise c.zarr temperature=8" in lines[2]


def test_a_setting_that_suffices_is_named() -> None:
    values = logits(3.0)
    full = TargetSpec(400, 0.0, 400, levels=254, temperatures=(1.0, 4.0))
    found = targets(full, values)
    few = replace(full, k_max=10, k_min=10)
    [line] = shortfalls(found, full, C, [Use(4.0, 4.0, keep=few, few="top_k=10")], "c")
    assert "T = 4 with top_k=10 (" in line
    named = int(line.split("Pass top_k=")[1].split(";")[0])
    for k, enough in ((named, True), (named // 2, False)):
        spec = replace(full, k_max=k, k_min=k)
        error = estimate(targets(spec, values), spec, C, 4.0)
        assert (error <= gradient_error.LIMIT) is enough


def test_a_cosine_is_that_of_an_independent_error() -> None:
    random = np.random.default_rng(0)
    a, e = random.standard_normal((2, 10**6))
    b = a + 0.5 * e
    assert cosine(0.5) == pytest.approx((a @ b) / np.sqrt((a @ a) * (b @ b)), abs=1e-3)


# Commands.


def warnings(text: str) -> list[str]:
    """Messages of the log that a terminal breaks into lines."""
    return [RULE for _ in range(" ".join(text.split()).count(RULE))]


@pytest.mark.parametrize(("k", "count"), [(2, 1), (25, 0)])
def test_a_new_cache(
    k: int, count: int, digits: Path, wide_teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    """The recipe declares T = 4; the first part shows how much of the mass is dropped there."""
    out = tmp_path / "c.zarr"
    keep = f"targets.k_max={k}", f"targets.k_min={k}"
    words = ("cache", "digits", "--data", digits, "--teacher", wide_teacher, "--out", out, *keep)
    done = kdcache(*words, "num_views=3", "dataset.labels=ignore")
    assert done.code == 0, done
    assert len(warnings(done.err)) == count, done.err


def test_a_cut(sibling_cache: Path, tmp_path: Path, kdcache: Command) -> None:
    done = kdcache("select", sibling_cache, tmp_path / "a.zarr", "--keep", "k=1,k_min=1")
    assert done.code == 0, done
    assert len(warnings(done.err)) == 1, done.err
    assert "--keep k=1" in " ".join(done.err.split())
    done = kdcache("select", sibling_cache, tmp_path / "b.zarr", "--views", "0:2")
    assert (done.code, warnings(done.err)) == (0, [])


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["temperature=1.0", "tail=zero", "top_k=5"], 1),
        (["temperature=4.0"], 0),
        (["mode=labels", "top_k=1"], 0),
    ],
)
def test_students_of_a_sweep_once(
    words: Sequence[str], count: int, digits_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from train import recipe as recipes
    from train.data.inputs import open_inputs
    from train.trainer import validate

    several = [recipes.load("digits", [*words, f"seed={seed}"]) for seed in range(3)]
    validate.check(several, open_inputs(digits_cache, None))
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([line for line in found if line.startswith(RULE)]) == count, found
