"""Turn SIGINT, SIGTERM and SIGUSR1 into a flag that long loops poll between two steps.

`sbatch --signal=USR1@60` sends SIGUSR1 ahead of the end of a job's time.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal outside of long loops as Ctrl-C."""
    raise KeyboardInterrupt


class StopRequest:
    """Context in which the first signal sets `requested`, and a second one interrupts at once."""

    received = ""
    """Name of the first signal, "" before."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.received = signal.Signals(number).name
