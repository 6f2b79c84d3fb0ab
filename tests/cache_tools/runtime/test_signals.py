"""One signal to a group is one, however often a launcher or a parent passes it on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
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


_IN_A_CALLBACK = """
import ctypes, os, signal, sys, time
from cache_tools.cli import main

number, then = sys.argv[1:]

@ctypes.CFUNCTYPE(None)
def callback():
    os.kill(os.getpid(), int(number))
    for _ in range(9):  # the handler runs between two of these
        pass

def command():
    callback()
    try:
        if then == "wait":
            time.sleep(300)
        raise {"error": RuntimeError, "pipe": BrokenPipeError}[then]
    finally:
        print("left")

main._load = lambda entry: command
sys.argv[1:] = ["info"]
main.console()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("then", ["wait", "error", "pipe"])
def test_a_signal_within_a_callback_of_c_is_not_lost(number: int, then: str) -> None:
    """ctypes drops the KeyboardInterrupt; what the library does next is not its cause."""
    command = [sys.executable, "-c", _IN_A_CALLBACK, str(int(number)), then]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (ended.returncode, ended.stdout) == (130, "left\n"), ended.stderr
    assert ended.stderr.startswith("Interrupted. What is finished is safe"), ended.stderr
    assert ended.stderr.count("\n") == 1


_AT_THE_END = """
import os, signal
from cache_tools.cli import main

handle = signal.signal

def late(number, handler):
    if number == signal.SIGALRM and handler == signal.SIG_IGN:
        signal.signal = handle
        os.kill(os.getpid(), signal.SIGHUP)
    return handle(number, handler)

def command():
    signal.signal = late

main.main = command
main.console()
"""


_BEFORE_THE_BEGINNING = """
import os, signal
from cache_tools.cli import main

handle = signal.signal

def early(number, handler):
    before = handle(number, handler)
    if number == signal.SIGALRM:
        signal.signal = handle
        os.kill(os.getpid(), signal.SIGHUP)
    return before

signal.signal = early
main.console()
"""


@pytest.mark.parametrize("script", [_AT_THE_END, _BEFORE_THE_BEGINNING], ids=["after", "before"])
def test_a_signal_beside_a_command_is_no_traceback(script: str) -> None:
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


_WHILE_COMPILING = """
import os, signal
from numba.core.codegen import CPUCodeLibrary
from cache_tools.cli import main

compiled = CPUCodeLibrary._object_compiled_hook.__func__

def interrupted(cls, *arguments):
    os.kill(os.getpid(), signal.SIGINT)
    compiled(cls, *arguments)

CPUCodeLibrary._object_compiled_hook = classmethod(interrupted)
main.console()
"""


def test_an_interrupt_while_code_is_compiled_ends_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WHILE_COMPILING, "demo", str(tmp_path / "demo")]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 130, ended.stderr
    assert "Interrupted. What is finished is safe" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
