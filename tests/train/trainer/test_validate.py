"""Checks of a recipe against the targets of a cache."""

import logging
from pathlib import Path

import pytest

from train import recipe as recipes
from train.data.inputs import open_inputs
from train.trainer import validate


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["top_k=5"], []),
        (["temperature=3.0"], []),  # all ten classes are kept
        (["top_k=5", "temperature=3.0"], ["T = 3, and the targets"]),
        (["top_k=5", "temperature_end=1.0"], ["T = 4 to 1, and the targets"]),
        (["top_k=5", "tail=zero"], ["tail=zero at T = 4"]),
        (
            ["top_k=5", "tail=zero", "temperature=1.0"],
            ["the targets keep too few classes for T = 1"],
        ),
        (["top_k=5", "loss=bkd", "temperature=3.0"], []),
    ],
)
def test_targets_that_are_approximate_at_a_temperature_are_logged(
    digits_cache: Path, caplog: pytest.LogCaptureFixture, words: list[str], expected: list[str]
) -> None:
    validate.check([recipes.load("digits", words)], open_inputs(digits_cache, None))
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [message[: len(e)] for message, e in zip(found, expected, strict=True)] == expected
