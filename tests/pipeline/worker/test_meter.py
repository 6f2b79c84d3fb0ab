"""Time that the stages take, per interval and in commit records."""

import pytest

from pipeline.worker.meter import TIMINGS, Meter
from tests.helpers.workbench import BLOCKS, Opener


def test_commit_records_state_how_busy_the_stages_were(opened: Opener) -> None:
    bench = opened(BLOCKS)
    bench.make()
    for made in bench.store.parts():
        said = bench.store.record(made)["statistics"]
        assert set(TIMINGS) < set(said)
        assert said["views_per_second"] > 0
        assert 0 <= said["render_busy"] <= 1.01
        assert said["teacher_busy"] > 0
        assert said["teacher_wait"] >= 0
        assert said["teacher_busy"] + said["teacher_wait"] <= 1.01


def test_a_wait_that_spans_two_intervals_counts_in_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait that spans two intervals counts in both."""
    now = [0.0]
    monkeypatch.setattr("pipeline.worker.meter.time.perf_counter", lambda: now[0])
    meter = Meter(1)
    now[0] = 3.0
    with meter.busy("wait"):
        now[0] = 4.0
        assert meter.since_last()["teacher_wait"] == 0.25
        now[0] = 5.0
        assert meter.since_last()["teacher_wait"] == 1.0
        now[0] = 6.0
    now[0] = 7.0
    assert meter.since_last()["teacher_wait"] == 0.5
    assert meter.since_last()["teacher_wait"] == 0.0


def test_the_meter_adds_up_and_forgets() -> None:
    meter = Meter(2)
    assert meter.since_last()["views_per_second"] == 0.0
    for stage in ("render", "render", "wait", "forward", "commit"):
        meter.add(stage, 1.0)
    meter.count(5)
    found = meter.since_last()
    assert found["render_busy"] == found["teacher_wait"] == found["teacher_busy"] > 1
    assert meter.since_last()["teacher_busy"] == 0.0
    meter.parts = 3
    assert meter.note().startswith("3 parts done, teacher waits ")
