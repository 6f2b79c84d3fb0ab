"""The one command `kdcache`, put together from the entry points of the group `kdcache.commands`.

Only the command that is called gets imported, so `kdcache --help` answers at once and `cache_tools`
needs to know nothing of the packages above it. Errors end at the edge of a command (`guard`).
"""

import functools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from cache_tools.cli import guard, key_options
from cache_tools.errors import UsageError
from cache_tools.runtime import logs, signals
from cache_tools.storage import disk_cache
from cache_tools.version import __version__

HELP = {
    "demo": "Write the embedded real data set as WebDataset shards and train its teacher.",
    "shard": "Write any data set as WebDataset shards that timm reads, too.",
    "beton": "Write a data set as one .beton, the container FFCV reads.",
    "plan": "Print samples, parts, bytes and forward passes of a recipe; write nothing.",
    "views": "Draw a contact sheet of views; works on a recipe before there is a cache.",
    "cache": "Stage 1: run the teacher once and store its soft targets.",
    "status": "Print which parts are committed; exit 1 unless all are.",
    "info": "Print the facts of a cache on one screen: teacher, views, targets, size.",
    "verify": "Check every byte of a cache; with --data its images and pixels too.",
    "import": "Write targets that exist as a cache: logits, TinyViT's, FKD's, ml-dr's files.",
    "convert": "Write a cache as WebDataset shards, Parquet or TinyViT's logits.",
    "ensemble": "Mix caches of several teachers over the same views into one.",
    "pull": "Fetch a cache from a URL, or some of its views and samples.",
    "push": "Upload a cache with its card, for others to pull.",
    "card": "Write a dataset card for a cache.",
    "select": "Cut a cache: some views, some samples, fewer classes.",
    "merge": "Join caches of one teacher: more views, more samples.",
    "diff": "Compare two caches, or logits and a cache.",
    "advise": "Measure how small a cache may be for a student's temperature and loss.",
    "train": "Stage 2: train students on the teacher's views.",
    "sweep": "Train a grid of students that share every batch.",
    "eval": "Measure a student on validation sets, beside its teacher.",
    "export": "Write a trained student for timm and the Hub.",
    "report": "Draw caches, runs and sweeps: one page of charts that opens offline.",
    "bench": "Find the bottleneck of a training run: disk, decode, resize, operations, student.",
}
"""One line for each of our commands in the order of a day's work; --help imports none of them."""
Command = Callable[..., Any]


def console() -> None:
    """Entry point of the console script."""
    try:
        try:
            for number in signals.handled():
                signal.signal(number, signals.interrupt)
            signals.raise_dropped_again()
            main()
        finally:
            _ignore_signals()
    except KeyboardInterrupt:  # beside the command: before it, after it, or in the line above
        _ignore_signals()
        sys.exit(guard.INTERRUPTED)


def _ignore_signals() -> None:
    """Ignore Ctrl-C at the interpreter's own end, where it is worth no traceback."""
    for number in (signal.SIGALRM, *signals.SIGNALS):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def main() -> None:
    """Run the command that `sys.argv` names."""
    guard.open_streams()
    option, rest = _data_cache(sys.argv[1:])
    called = next((a for a in rest if not a.startswith("-")), None)
    with guard.edge():
        try:
            Path.cwd()
        except FileNotFoundError:  # in which libraries end the process
            raise UsageError(
                "the current folder was removed. Change to one that exists (cd), and run the same "
                "command again."
            ) from None
        _application(called)(option + rest, prog_name="kdcache")


def _data_cache(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the global option --data-cache, also accepted after the command."""
    option: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument == "--data-cache":
            folder = next(left, None)
            if folder is None:  # typer reports the missing folder, not a missing command
                return [argument], []
            option += [argument, folder]
        elif argument.startswith("--data-cache="):
            option.append(argument)
        else:
            rest.append(argument)
    return option, rest


def _application(called: str | None) -> typer.Typer:
    """All commands: the called one for real, the others as names with a line of help."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_options)
    found = {entry.name: entry for entry in entry_points(group="kdcache.commands")}
    for name in sorted(found, key=lambda n: (list(HELP).index(n) if n in HELP else len(HELP), n)):
        entry = found[name]
        command = _guarded(_load(entry)) if name == called else lambda: None
        line = HELP.get(name, f"From {entry.value.partition(':')[0]}.")
        shown = None if name == called else line
        app.command(name, cls=key_options.Command, help=shown)(command)
    return app


def _print_version(version: bool) -> None:
    if version:
        print(f"kdcache {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")] = False,
    data_cache: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Folder for indices and for what is read from URLs; default: $KDCACHE_CACHE or "
            "~/.cache/kdcache, up to $KDCACHE_CACHE_LIMIT. Also accepted after the command.",
        ),
    ] = "",
) -> None:
    """Run the teacher once, store its soft targets, train any number of students from them."""
    if data_cache:
        os.environ[disk_cache.FOLDER] = data_cache  # for the processes that this one starts, too
    _set_up_logging(logging.WARNING if quiet else logging.INFO)


def _load(entry: EntryPoint) -> Command:
    """Import a command; refuse a user's file that shadows our package."""
    package = entry.module.partition(".")[0]
    if package in ("cache_tools", "pipeline", "train"):
        spec = find_spec(package)
        here = Path(__file__).resolve().parents[2]
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != here:
            raise UsageError(
                f"kdcache needs its package {package!r}, but Python finds "
                f"{origin or 'nothing'} first. Run from another folder, or rename that file."
            )
    command: Command = entry.load()
    return command


def _guarded(command: Command) -> Command:
    """Wrap a command: arguments and environment are checked, errors become messages and codes."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        with guard.edge():
            disk_cache.check_environment()
            command(**{name: guard.argument(name, value) for name, value in arguments.items()})

    return run


def _set_up_logging(level: int) -> None:
    """Log to stderr: with colours and times on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, markup=False
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    logs.set_up(handler, level)
    if not os.environ.get("KDCACHE_DEBUG"):
        warnings.filterwarnings("ignore", category=UserWarning, module="torch|timm|huggingface_hub")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost process, stacks of C++
