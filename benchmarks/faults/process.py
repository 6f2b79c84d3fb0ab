"""One `kdcache` command in a forked process: its end, what it printed, its time and its memory.

The parent has imported everything that commands import, and runs no thread; a command then starts
within milliseconds. A signal goes to the whole process group, SIGKILL to end it: after so many
seconds, or when the command makes its n-th change to the file system (Python's audit events of
opening a file for writing, renaming, removing and making folders), which hits the same place every
time.
"""

import contextlib
import importlib
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
)
_LIBRARIES = (
    "fsspec.implementations.http", "fsspec.implementations.memory", "matplotlib.pyplot", "jinja2",
    "pyarrow.parquet", "torch.utils.tensorboard", "timm.optim", "timm.scheduler", "timm.loss",
    "sklearn.datasets", "typer._adapters", "zarr", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "torch.utils.serialization.config", "torch._dynamo", "joblib", "scipy.io",
)  # fmt: skip
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
"""Signals that end a command as an interrupt."""
PATIENCE = 120.0
"""Seconds after which a command hangs."""


@dataclass(frozen=True)
class Ending:
    """End of a command."""

    code: int
    """Exit code; minus the number of the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float
    peak: int
    """Peak of resident memory, in bytes, with that of the libraries."""
    hung: bool = False
    """It was ended since it took longer than its patience."""

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr

    @property
    def traceback(self) -> bool:
        """Whether it ended with a traceback, or by a signal of its own."""
        return "Traceback (most recent call last)" in self.text or self.code < 0

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        return (self.stderr.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Moment:
    """Moment of a signal: seconds after the start, or number of a change of the file system."""

    seconds: float = 0.0
    change: int = 0
    signal: int = signal.SIGKILL


def preload() -> None:
    """Import what commands import, and load the compiled kernels, without starting a thread."""
    for package in ("cache_tools", "pipeline", "train"):
        folder = [str(Path(__file__).parents[2] / package)]
        for module in pkgutil.walk_packages(folder, f"{package}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import numpy as np
    import torch

    from cache_tools.render import view
    from cache_tools.spec.views import ViewSpec
    from cache_tools.views import draw
    from pipeline.engines import local

    torch.set_num_threads(1)
    local.START = "fork"
    spec = ViewSpec(32, auto_augment="rand-m7-mstd0.5")
    id_N = np.arange(64, dtype=np.uint64)
    side = np.full(64, 40, np.int32)
    drawn = draw.draw(spec, id_N, side, side, 0)
    picture = np.zeros((40, 40, 3), np.uint8)
    for number in range(len(id_N)):
        view.render(picture, spec, drawn, number, np.empty((32, 32, 3), np.uint8))


def run(
    arguments: Sequence[str],
    folder: Path,
    kill: Moment | None = None,
    patience: float = PATIENCE,
    prepare: Callable[[], None] | None = None,
) -> Ending:
    """Run `kdcache` with these arguments in `folder`, which has its data folder and its output.

    Args:
        arguments: Words of the command.
        folder: Working folder of the command.
        kill: Moment of a signal; None lets it end.
        patience: Seconds after which it is ended, as one that hangs; they begin again with a signal
            other than SIGKILL.
        prepare: Called in its process, before the command.
    """
    streams = [folder / "stdout", folder / "stderr"]
    begin = time.monotonic()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the command has handlers
    pid = os.fork()
    if not pid:
        _be(arguments, folder, streams, kill, prepare)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    left = patience if kill is None or kill.change else min(patience, kill.seconds)
    ended = _wait(pid, left)
    if not ended and kill is not None and kill.seconds and kill.signal != signal.SIGKILL:
        _send(pid, kill.signal)
        left = patience
        ended = _wait(pid, left)
    hung = not ended and left == patience
    if not ended:
        _send(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # workers that outlive it
    out, err = (path.read_text(errors="replace") if path.exists() else "" for path in streams)
    code = os.waitstatus_to_exitcode(status)
    return Ending(code, out, err, time.monotonic() - begin, used.ru_maxrss * 1024, hung)


def _send(pid: int, number: int) -> None:
    """Send a signal to a process and its group, which it may not have yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; False if it still runs after so many seconds."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _be(
    arguments: Sequence[str],
    folder: Path,
    streams: Sequence[Path],
    kill: Moment | None,
    prepare: Callable[[], None] | None,
) -> None:
    """Be the command, in the child; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ["KDCACHE_CACHE"] = str(folder / "kept")
        os.environ["HOME"] = str(folder)
        if prepare is not None:
            prepare()
        if kill is not None and kill.change:
            sys.addaudithook(_killer(kill))
        from cache_tools.cli import main

        sys.argv = ["kdcache", *(word.replace("{work}", str(folder)) for word in arguments)]
        main.main = _heard(main.main)
        main.console()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _heard(command: Callable[[], None]) -> Callable[[], None]:
    """Unblock the signals when the handlers of `console` are in place, and call the command.

    Where the machine is busy, a signal comes before; an interpreter that only starts has none.
    """

    def call() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        command()

    return call


def _killer(kill: Moment) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that signals the process group at its n-th change of the file system."""
    left = kill.change

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if writes or event in _CHANGES:
            left -= 1
            if left == 0:
                os.killpg(0, kill.signal)

    return hook
