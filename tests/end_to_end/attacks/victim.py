"""A reader that others feed: opens a cache in every way there is, under a limit of memory.

Runs as a process of its own (`python victim.py`), so that a hang, a crash or the kernel's killer
is seen from outside. One JSON line in, one out. `Victim` is its other end.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import psutil

ADDRESSES = 3 * 2**29
"""Bytes of address space that a reader may ask for on top of what it starts with (1.5 GB)."""
MEMORY = 2**29
"""Bytes of memory that it may really touch on top of that."""
PATIENCE = 100.0
"""Seconds of CPU time after which a reader counts as hanging; a busy machine has no say in it."""
WAITING = 1000.0
"""Seconds after which it does so in any case: it may wait for a pipe."""
_PARTS = 8


@dataclass
class Outcome:
    """What came of opening one cache."""

    refusals: dict[str, str] = field(default_factory=dict)
    """Step → "Kind: message" of a KdcacheError, of each step that raised or reported one."""
    escaped: dict[str, str] = field(default_factory=dict)
    """Step → traceback of anything else."""
    grown: int = 0
    """Bytes of memory touched beyond those at the start."""
    targets: str = ""
    """Digest of the decoded targets, when all parts were read."""
    printed: str = ""
    """What `kdcache info` printed."""

    @property
    def message(self) -> str:
        """All refusals as one text."""
        return "\n".join(f"{step}: {text}" for step, text in self.refusals.items())


class Victim:
    """The process; started when needed, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def open(self, path: Path, limit: int = ADDRESSES) -> Outcome:
        """Open the cache at `path` in every way; a hang or a crash counts as escaped."""
        process = self._process = self._process or _start()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([str(path), limit]) + "\n")
        process.stdin.flush()
        line = _line(process.stdout, psutil.Process(process.pid))
        if line:
            return Outcome(**json.loads(line))
        self.close()
        what = "died" if line == "" else f"hung for {PATIENCE:.0f} s"
        return Outcome(escaped={"process": f"the reader {what}"})

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _start() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    root = Path(__file__).parents[3]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=environment, cwd="/"
    )


def _line(stream: IO[str], reader: psutil.Process) -> str | None:
    """The next line, "" at the end of the stream, None when the reader hangs."""
    begin, used = time.monotonic(), sum(reader.cpu_times()[:2])
    while not select.select([stream], [], [], 1.0)[0]:
        busy = sum(reader.cpu_times()[:2]) - used
        if busy > PATIENCE or time.monotonic() - begin > WAITING:
            return None
    return stream.readline()


def examine(path: str) -> Outcome:
    """Every way to open a cache, one after another; none may raise but a KdcacheError."""
    from cache_tools.store.cache import Cache
    from cache_tools.verify import verify

    outcome = Outcome()
    store: Any = _step(outcome, "open", lambda: Cache.open(path))
    if store is None:
        return outcome
    _step(outcome, "table", lambda: store.table)
    outcome.targets = _step(outcome, "read", lambda: _digest(store)) or ""
    _step(outcome, "present", lambda: [store.present(p) for p in islice(store.parts(), _PARTS)])
    verdict: Any = _step(outcome, "verify", lambda: verify.verify(store))
    if verdict and verdict.problems:
        outcome.refusals["verify"] = "\n".join(f"{p.kind}: {p}" for p in verdict.problems[:9])
    outcome.printed = _step(outcome, "info", lambda: _printed(path, "info")) or ""
    _step(outcome, "status", lambda: _printed(path, "status"))
    return outcome


def _step(outcome: Outcome, name: str, work: Callable[[], Any]) -> Any:
    from cache_tools.errors import KdcacheError

    try:
        return work()
    except KdcacheError as error:
        outcome.refusals[name] = f"{error.kind}: {error}"
    except Exception:
        outcome.escaped[name] = traceback.format_exc(limit=-6)
    return None


def _digest(store: Any) -> str:
    """Digest of the targets of the first parts, decoded."""
    from cache_tools.targets import codec

    digest = hashlib.sha256()
    for part in islice(store.parts(), _PARTS):
        stored = store.read(part)[0]
        if stored.count_B.size * store.spec.targets.k_max < 2**24:
            for values in vars(codec.decode(stored, store.spec.targets)).values():
                digest.update(values.tobytes())
    return digest.hexdigest()


def _printed(path: str, name: str) -> str:
    """What a command of `kdcache` prints to a terminal that knows UTF-8."""
    from cache_tools.cli import cache

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out):
        getattr(cache, name)(path)
    out.seek(0)
    return out.read()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _limited(path: str, limit: int) -> Outcome:
    """`examine` with no more address space than it needs, and a measure of what it touched."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + limit, hard))
    try:
        outcome = examine(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    outcome.grown = _status("VmHWM") - before
    return outcome


def main() -> None:
    """Serve until stdin ends."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread: threads take addresses
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a command prints is no answer
    for line in sys.stdin:
        outcome = _limited(*json.loads(line))
        answers.write(json.dumps(vars(outcome)) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    main()
