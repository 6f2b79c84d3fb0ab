"""The command: sets up the laboratory, runs all attempts on all cores, prints the table."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.faults import damages, hostile, kills, process, server, signals
from benchmarks.faults.inputs import cases
from benchmarks.faults.lab import Lab
from benchmarks.faults.outcome import Figures, Outcome, table
from benchmarks.faults.servers import servers
from benchmarks.faults.subjects import subjects
from cache_tools.runtime import progress

log = logging.getLogger("kdcache")
COUNTS = {"kills": 9, "signals": 9, "damages": 100}
"""Attempts per command, and per weight of what is damaged, at --count 1."""
_ADDRESSES = 8 * 2**30
"""Bytes of addresses of a process: a bomb must not take the machine with it."""
Attempt = Callable[[Path], tuple[Outcome, int]]
"""Takes an empty working folder; returns the outcome, and the bytes beyond an idle process."""
_attempts: list[tuple[str, str, Attempt]] = []
"""Family, subject and function of all attempts: set before the workers are forked."""
_measured: list[Any] = []
"""Commands and subjects: set before the workers are forked, and again with their facts."""


def _work(number: int) -> tuple[int, Outcome, int]:
    """Make one attempt, in a worker."""
    work = _folder()
    try:
        return number, *_attempts[number][2](work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _kill(command: kills.Command, seed: str, work: Path) -> tuple[Outcome, int]:
    return kills.attempt(command, seed, work), 0


def _signal(command: kills.Command, seed: str, work: Path) -> tuple[Outcome, int]:
    return signals.attempt(command, seed, work), 0


def _damage(subject: damages.Subject, seed: str, work: Path) -> tuple[Outcome, int]:
    return damages.attempt(subject, seed, work), 0


def _measure(number: int) -> tuple[int, Any]:
    """Run a command or a subject undisturbed, in a worker, for what is expected."""
    work = _folder()
    _measured[number].measure(work)
    shutil.rmtree(work, ignore_errors=True)
    return number, _measured[number]


def _folder() -> Path:
    """Return the working folder of a worker; all names are of one length."""
    return Path(tempfile.gettempdir()) / f"faults-{os.getppid():07}-{os.getpid():07}"


def main(
    only: Annotated[
        str, typer.Option(help="kills, signals, damages or hostile; default: all.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of moments, damages and inputs.")] = 1,
    count: Annotated[
        float, typer.Option(help="Factor of the number of kills, signals and damages.")
    ] = 1.0,
    subject: Annotated[str, typer.Option(help="Only the command or subject of this name.")] = "",
    jobs: Annotated[int, typer.Option(help="Attempts at once; 0: one per core.")] = 0,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the facts here.")] = None,
) -> None:
    """Kill, interrupt, damage and attack; count what becomes of it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kdcache").setLevel(logging.INFO)
    process.preload()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-lab-")))
        lab = Lab(folder / "lab")
        url = stack.enter_context(server.serve(lab.folder))
        if only in ("", "kills", "signals"):
            _measured.extend(kills.commands(lab, url))
        if only in ("", "damages"):
            lab.fill(url)
            _measured.extend(subjects(lab, url))
        _measured[:] = [thing for thing in _measured if subject in ("", thing.name)]
        workers = jobs or os.cpu_count() or 1
        for number, thing in _each(_measure, len(_measured), workers, "undisturbed runs"):
            _measured[number] = thing
        for family, make in (("kills", _kill), ("signals", _signal), ("damages", _damage)):
            kind = damages.Subject if family == "damages" else kills.Command
            for thing in (thing for thing in _measured if isinstance(thing, kind)):
                for number in range(max(1, round(COUNTS[family] * thing.weight * count))):
                    made: Attempt = partial(make, thing, f"{seed}-{thing.name}-{number}")
                    if only in ("", family):
                        _attempts.append((family, thing.name, made))
        if only in ("", "hostile"):
            (folder / "idle").mkdir()
            idle = process.run(["--version"], folder / "idle").peak
            for case in [*cases(lab, seed), *servers(lab, stack)]:
                family = case.name.partition(":")[0]
                if subject in ("", family):
                    made = partial(hostile.attempt, case, idle=idle)
                    _attempts.append(("hostile inputs", family, made))
        figures = _run(workers)
    facts = {name: found.facts() for name, found in figures.items()}
    if json_:
        json_.write_text(json.dumps({"seed": seed} | facts, indent=2) + "\n", encoding="utf-8")
    print(table(figures))
    sys.exit(int(any(found.faults for found in figures.values())))


def _each(call: Callable[[int], Any], count: int, workers: int, label: str) -> Iterator[Any]:
    """Call with the numbers from 0, a few at once, each in a process that was forked for it."""
    if not count:
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, count), mp_context=context) as pool:
        futures = [pool.submit(call, number) for number in range(count)]
        with progress.bar(label, count, "attempts") as advance:
            for future in as_completed(futures):
                yield future.result()
                advance(1)


def _run(workers: int) -> dict[str, Figures]:
    """Make all attempts, a few at once."""
    figures: dict[str, Figures] = {}
    for number, outcome, grown in _each(_work, len(_attempts), workers, "attempts"):
        family, name, _ = _attempts[number]
        figures.setdefault(family, Figures()).add(name, outcome, grown)
        if not outcome.good:
            log.warning(f"{outcome.kind}: {outcome.told} | {outcome.ending.last_line[:300]}")
    return figures


if __name__ == "__main__":
    typer.run(main)
