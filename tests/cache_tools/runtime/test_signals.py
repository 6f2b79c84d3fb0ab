"""One signal to a group is one, however often a launcher or a parent passes it on."""

import os
import signal
from types import SimpleNamespace

import pytest

from cache_tools.runtime import signals
from cache_tools.runtime.signals import StopRequest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(StopRequest, "_acted_upon", 0.0)
    return now


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_that_comes_again_at_once_is_the_same(clock: list[float]) -> None:
    with StopRequest() as stop:
        send(signal.SIGTERM)
        clock[0] += signals.PASSED_ON / 2
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert (stop.requested, stop.received) == (True, "SIGTERM")
        clock[0] += signals.PASSED_ON
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_signal_is_no_second_interrupt_while_the_first_ends_the_command(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGTERM, signals.interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        with StopRequest() as stop:  # a loop that begins nevertheless ends
            send(signal.SIGTERM)
            assert stop.requested
        clock[0] += signals.PASSED_ON
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_terminal_stops_a_command_unless_it_is_below_nohup(clock: list[float]) -> None:
    before = signal.signal(signal.SIGHUP, signals.interrupt)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.received == "SIGHUP"
        clock[0] += signals.PASSED_ON
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
