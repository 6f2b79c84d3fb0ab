"""Cohorts share a stream of batches and fit into the memory that is measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cache_tools.errors import UsageError
from train import recipe as recipes
from train.sweep import cohorts
from train.sweep.cohorts import MemoryEstimate
from train.sweep.grid import Student

CPU = torch.device("cpu")


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


def test_memory_for_a_cohort_is_within_that_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_tools.runtime.host_memory.limit", lambda: 1000)
    assert cohorts.budget(torch.device("cpu")) == cohorts.MEMORY_FRACTION * 1000
