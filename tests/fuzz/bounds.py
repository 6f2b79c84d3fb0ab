"""Limits of a reader: no crash, no hang, no memory beyond a gigabyte, errors of ours alone."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from cache_tools.errors import KdcacheError

ADDRESSES = 3 * 2**29
"""Bytes of address space on top of what is there: threads take some without touching it."""
MEMORY = 2**30
"""Bytes that are really touched on top of what is there."""
SECONDS = 30
"""Seconds of CPU time."""


class Unbounded(BaseException):
    """A reader that takes more time or memory than its input can be worth."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let the body end with a value, a KdcacheError or an OSError, within the limits."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    earlier = signal.signal(signal.SIGPROF, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESSES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.suppress(KdcacheError, OSError):
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    if (grown := _status("VmHWM") - before) > MEMORY:
        raise Unbounded(f"{grown:,} bytes of memory")


def _hang(_: int, __: FrameType | None) -> None:
    raise Unbounded(f"{SECONDS} s of CPU time")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
