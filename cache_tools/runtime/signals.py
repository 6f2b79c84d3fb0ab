"""Turn SIGINT, SIGTERM, SIGUSR1 and SIGHUP into a flag that long loops poll between two steps.

Outside of such loops a signal raises KeyboardInterrupt, where some libraries lose it: called back
from C, as by LLVM when it has compiled a function, they cannot pass it on, and it is dropped;
others turn it into an error of their own. A dropped one is raised again (`raise_dropped_again`),
and the error that follows one is its consequence (`interrupts`).

`sbatch --signal=USR1@60` sends SIGUSR1 ahead of the end of a job's time, a terminal that is closed
SIGHUP; `nohup` has the latter ignored, and it stays so. A signal to a whole group
comes again from the launcher or the parent, which pass it on: both are one.
"""

import math
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PASSED_ON = 2.0
"""Seconds after a signal in which the next one is that one again."""
_DELAY = 0.05
"""Seconds after which a dropped KeyboardInterrupt is raised again."""
_interrupts: list[int] = []
"""Numbers of the signals that have raised KeyboardInterrupt in this process."""


def handled() -> list[signal.Signals]:
    """Return those of SIGNALS that this process acts upon: all, but SIGHUP below `nohup`."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number is signal.SIGHUP)]


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal outside of long loops as Ctrl-C."""
    if not StopRequest.is_passed_on():
        _interrupts.append(number)
        raise KeyboardInterrupt


def raise_dropped_again() -> None:
    """Have each KeyboardInterrupt that Python would print and drop raised again, a moment later."""
    signal.signal(signal.SIGALRM, _interrupt_again)
    sys.unraisablehook = _unraisable


def _unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _DELAY)
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_again(number: int, frame: FrameType | None) -> None:
    StopRequest._acted_upon = -math.inf
    signal.raise_signal(_interrupts[-1] if _interrupts else signal.SIGINT)


def interrupts() -> int:
    """Count the signals that have raised KeyboardInterrupt in this process."""
    return len(_interrupts)


def forget_dropped() -> None:
    """Raise none again, as the process ends."""
    signal.setitimer(signal.ITIMER_REAL, 0)


class StopRequest:
    """Context in which the first signal sets `requested`, and a second one interrupts at once."""

    received = ""
    """Name of the first signal, "" before."""
    _acted_upon = -math.inf

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in handled():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        passed_on = self.is_passed_on()
        if self.requested and not passed_on:
            _interrupts.append(number)
            raise KeyboardInterrupt
        self.requested = True
        self.received = self.received or signal.Signals(number).name

    @staticmethod
    def is_passed_on() -> bool:
        """Return True if a signal follows the last one so closely that it is that one again."""
        now = time.monotonic()
        passed_on = now - StopRequest._acted_upon < PASSED_ON
        if not passed_on:
            StopRequest._acted_upon = now
        return passed_on
