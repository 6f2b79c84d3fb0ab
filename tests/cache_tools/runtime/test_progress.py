"""Progress in a log file: a line every half minute."""

import logging
import time

import pytest

from cache_tools.runtime import progress


def test_the_start_does_not_count_into_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten units, of which the first takes 400 s and each further one 15."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "kdcache"), progress.bar("train", 10, "epochs") as advance:
        for seconds in (400, 15, 15, 15):
            now += seconds
            advance(1)
    assert caplog.messages == [
        "train: 1 of 10 epochs, 400 s each, 3600 s left",
        "train: 3 of 10 epochs, 15 s each, 105 s left",
    ]


def test_units_that_take_less_than_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "kdcache"), progress.bar("read", 9_000, "images") as advance:
        for _ in range(2):
            now += 20
            advance(2_000, "a note")
    assert caplog.messages == ["read: 4000 of 9000 images, 100/s, 50 s left, a note"]
