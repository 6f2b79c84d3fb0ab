"""Progress: lines of any width on a terminal, and lines of a log file."""

import io
import logging
import sys
import time
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from cache_tools.runtime import progress
from cache_tools.runtime.progress import Bar


class Clock:
    """Seconds that pass when they are added."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock of all progress."""
    fake = Clock()
    monkeypatch.setattr(time, "monotonic", fake)
    return fake


def drawn(bar: Bar, width: int = 80) -> str:
    """The line of a bar on a terminal of `width` characters."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(bar)
    [line] = capture.get().splitlines()
    assert cell_len(line) <= width
    return line


def in_the_middle(clock: Clock) -> Bar:
    """A bar of which a quarter is done, with a long note."""
    bar = Bar("cache", 8000, "views")
    clock.now += 10
    bar(30)
    clock.now += 10
    bar(1970, "2 parts done, teacher waits 0%, rendering 0%")
    return bar


def test_count_rate_and_times_are_whole_at_any_width(clock: Clock) -> None:
    bar = in_the_middle(clock)
    for width in range(43, 160):
        line = drawn(bar, width)
        assert line.startswith("cache ")
        assert "2000/8000 197 views/s 0:00:20 0:00:31" in line


def test_the_note_gives_way_before_the_bar_and_the_bar_before_the_label(clock: Clock) -> None:
    bar = in_the_middle(clock)
    facts = "2000/8000 197 views/s 0:00:20 0:00:31"
    assert drawn(bar, 120).endswith(f" {facts} 2 parts done, teacher waits 0%, rendering 0%")
    assert drawn(bar, 80) == f"cache ━━╸        {facts} 2 parts done, teacher wa…"
    assert drawn(bar, 60) == f"cache ━━━━             {facts}"
    assert drawn(bar, 43) == f"cache {facts}"
    assert drawn(bar, 41) == f"ca… {facts}"
    assert drawn(bar, 37) == facts
    drawn(bar, 20)  # one line even so


def test_a_label_or_note_is_no_markup(clock: Clock) -> None:
    bar = Bar("fetch [red]", 2, "parts")
    bar(1, "a [bold]note[/]")
    line = drawn(bar)
    assert line.startswith("fetch [red] ")
    assert line.endswith(" a [bold]note[/]")


def test_no_rate_before_the_first_unit(clock: Clock) -> None:
    bar = Bar("cache", 800, "views", done=100)
    clock.now += 12
    bar(0, "0 parts done")
    assert "100/800 - 0:00:12 -:--:--" in drawn(bar)


def test_batches_slower_than_the_time_of_the_rate(clock: Clock) -> None:
    """A batch of 120 views every 60 s, after a start of 18 s."""
    bar = Bar("cache", 800, "views")
    clock.now += 18
    bar(120)
    assert "120/800 6.7 views/s 0:00:18 0:01:42" in drawn(bar)
    for done in (240, 360):
        clock.now += 60
        bar(120)
        assert f"{done}/800 2.0 views/s" in drawn(bar)
    clock.now += 59
    bar(0, "a note")  # is no unit
    assert "360/800 2.0 views/s 0:03:17 0:03:40" in drawn(bar)


def test_the_rate_follows_the_last_half_minute(clock: Clock) -> None:
    bar = Bar("train", 10_000, "images")
    for per_second in (100, 10):
        for _ in range(40):
            clock.now += 1
            bar(per_second)
    assert bar.rate() == pytest.approx(10)


def test_units_of_seconds_are_decimals_below_ten(clock: Clock) -> None:
    bar = Bar("train", 10, "epochs")
    clock.now += 1.25
    bar(1)
    assert "1/10 1.2 s each 0:00:01 0:00:12" in drawn(bar)


def test_units_that_come_at_once_took_the_time_since_the_beginning(clock: Clock) -> None:
    """Not 100 in no time, but in the ten seconds before; likewise after a wait."""
    bar = Bar("verify images", 320, "images")
    clock.now += 10
    for _ in range(100):
        bar(1)
    assert bar.rate() == pytest.approx(10)
    clock.now += 40
    for _ in range(200):
        clock.now += 1e-6
        bar(1)
    assert bar.rate() == pytest.approx(5, rel=0.03)


def test_units_of_unlike_length_have_no_rate(clock: Clock) -> None:
    bar = Bar("measure", 8, "seconds", even=False)
    clock.now += 4
    bar(4)
    assert bar.rate() is None
    assert drawn(bar).endswith(" 4/8 0:00:04")


def test_the_mean_of_all_units_at_the_end(clock: Clock) -> None:
    bar = Bar("cache", 1000, "views", done=400)
    for count in (100, 400, 100):
        clock.now += 20
        bar(count)
    clock.now += 7
    assert "1000/1000 10 views/s 0:01:00 0:00:00" in drawn(bar)


def test_pauses_are_left_out_of_the_rate_and_not_of_the_time_left(clock: Clock) -> None:
    """Two epochs of 20 s, with an evaluation of 20 s after each."""
    bar = Bar("kd seed 0", 4000, "images")
    for _ in range(2):
        for _ in range(4):
            clock.now += 5
            bar(500)
        rate = bar.rate()
        with bar.paused():
            clock.now += 20
        assert bar.rate() == rate == pytest.approx(100)
        if not bar.finished:
            assert bar.seconds_left() == pytest.approx(40)
    assert "4000/4000 100 images/s 0:01:00 0:00:00" in drawn(bar)


def test_a_bar_on_a_terminal_of_eighty_columns(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown(True), progress.bar("cache", 8000, "views") as advance:
        clock.now += 10
        advance(2000, "2 parts done, teacher waits 0%, rendering 0%")
    shown = capsys.readouterr().err
    assert "2000/8000 200 views/s 0:00:10 0:00:30 2 parts" in shown


def logged(
    caplog: pytest.LogCaptureFixture, total: int, unit: str, work: Callable[[Bar], None]
) -> list[str]:
    """Lines of a log file."""
    with caplog.at_level(logging.INFO, "kdcache"), progress.bar("train", total, unit) as advance:
        work(advance)
    return caplog.messages


def test_the_start_does_not_count_into_the_remaining_time(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten units, of which the first takes 400 s and each further one 15."""

    def work(advance: Bar) -> None:
        for seconds in (400, 15, 15, 15):
            clock.now += seconds
            advance(1)

    assert logged(caplog, 10, "epochs", work) == [
        "train: 1 of 10 epochs, 400 s each, 3600 s left",
        "train: 3 of 10 epochs, 15 s each, 105 s left",
    ]


def test_a_line_after_ten_seconds_and_then_every_half_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def work(advance: Bar) -> None:
        for _ in range(75):
            clock.now += 1
            advance(100, "a note")

    assert logged(caplog, 9000, "images", work) == [
        "train: 1000 of 9000 images, 100/s, 80 s left, a note",
        "train: 4000 of 9000 images, 100/s, 50 s left, a note",
        "train: 7000 of 9000 images, 100/s, 20 s left, a note",
    ]


def test_one_unit_is_singular(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def work(advance: Bar) -> None:
        clock.now += 11
        advance(1)

    assert logged(caplog, 1, "batches", work) == ["train: 1 of 1 batch, 11 s each, 0 s left"]
