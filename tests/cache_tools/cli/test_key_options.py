"""Recipe keys that are written as options."""

import re
from collections.abc import Callable

import pytest

from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train digits --epochs 2", "--epochs is no option of kdcache train"),
        ("train digits --epochs=2", "without dashes: epochs=2."),
        ("train digits --epoch 3", "without dashes: epochs=3."),
        ("train digits --accumulate", "without dashes: grad_accum_steps=…."),
        ("cache digits --num-views 4 --out x", "without dashes: num_views=4."),
        ("plan digits --views.size=64", "without dashes: views.size=64."),
        ("views digits --mixup 0.2", "without dashes: views.mixup=0.2."),
    ],
)
def test_a_recipe_key_as_an_option_is_shown_as_it_is_written(
    kdcache: Command, arguments: str, words: str
) -> None:
    outcome = kdcache(*arguments.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("UsageError: ")
    assert words in outcome.err


@pytest.mark.parametrize("arguments", ["train digits --seds 2", "cache digits --epochs 2"])
def test_an_option_that_is_no_key_of_the_command_is_none(kdcache: Command, arguments: str) -> None:
    outcome = kdcache(*arguments.split())
    assert outcome.code == 2
    assert "without dashes" not in outcome.err


def test_lines_of_help_are_as_wide_as_the_terminal(kdcache: Command) -> None:
    text = kdcache("report", "--help").out
    paragraph = next(part for part in re.split(r"\n\s*\n", text) if "Of a cache:" in part)
    *full, _ = paragraph.splitlines()
    assert len(full) > 1
    assert all(len(line.rstrip()) > 60 for line in full), paragraph
