"""The edge of a command: what a user can cause ends as one paragraph, a fault of ours as a report.

KdcacheErrors have their text. Errors of the system become one (`storage.system_errors`), with the
file and the next step. Anything else is a fault of kdcache: its traceback, and where to report it.
KDCACHE_DEBUG=1 shows every traceback.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import signals, text
from cache_tools.runtime.secrets import redact
from cache_tools.storage import paths, system_errors
from cache_tools.version import __version__

INTERRUPTED = 130
_reserve = [bytearray(2**20)]
"""Memory for the message that there is none left."""


@contextlib.contextmanager
def edge() -> Iterator[None]:
    """Turn every error of the body into a message and an exit code."""
    before = signals.interrupts()
    try:
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter):
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where a full disk can still be reported
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt as signal:
        _end_interrupted(str(signal))
    except BrokenPipeError:  # the reader of our stdout went away, as `| head` does
        _drop_stdout()
        if signals.interrupts() > before:  # with its whole group
            _end_interrupted()
    except Exception as error:
        if signals.interrupts() > before:  # a library made this error of it
            _end_interrupted()
        _reserve.clear()
        if (known := system_errors.explained(error)) is not None:
            _fail(known)
        traceback.print_exc()
        say(
            f"This is a fault of kdcache {__version__}, not of yours. Report it with the lines "
            f"above and the command{_tracker()}."
        )
        sys.exit(1)


def open_streams() -> None:
    """Make the standard streams usable (closed, or of a narrow encoding), and free of secrets."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed: a file opened later would get its number, and our output
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        if number and not isinstance(stream, _WithoutSecrets):
            setattr(sys, name, _WithoutSecrets(getattr(sys, name)))


class _WithoutSecrets:
    """A standard stream whose texts pass through `redact`: messages, logs, JSON, tracebacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def argument(name: str, value: Any) -> Any:
    """Return an argument as a command takes it: each number finite, a leading ~ expanded.

    No shell expands it in --out=~/x.

    Raises:
        UsageError: A number is NaN, infinite or beyond 64 bits.
    """
    if isinstance(value, list):
        return [argument(name, one) for one in value]
    if isinstance(value, (int, float)) and not abs(value) < 2**63:
        option = f"--{name.strip('_').replace('_', '-')}"
        raise UsageError(f"{option} is no number within the range of 64 bits. Pass another.")
    return type(value)(paths.expand(str(value))) if isinstance(value, (str, Path)) else value


def say(message: str) -> None:
    """Print to stderr, if anything reads it; characters that control a terminal are escaped."""
    with contextlib.suppress(OSError):
        print(text.message(redact(message)), file=sys.stderr)


def _end_interrupted(message: str = "") -> NoReturn:
    signals.forget_dropped()
    if os.environ.get("KDCACHE_DEBUG"):
        traceback.print_exc()
    say(message or "Interrupted. What is finished is safe; run the same command again to go on.")
    sys.exit(INTERRUPTED)


def _fail(error: KdcacheError) -> None:
    if os.environ.get("KDCACHE_DEBUG"):
        traceback.print_exc()
    say(f"{error.kind}: {error}")
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()
    sys.exit(error.exit_code)


def _drop_stdout() -> None:
    """Send what is left in the buffer of stdout nowhere, so that the interpreter's end is quiet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tracker() -> str:
    """Name the address of the issue page among the URLs of the project, if it has one."""
    with contextlib.suppress(PackageNotFoundError):
        for line in metadata("kdcache").get_all("Project-URL") or ():
            name, _, url = line.partition(", ")
            if name.lower() in ("issues", "bug tracker", "tracker"):
                return f" at {url}"
    return " on the issue page of the project you have it from"
