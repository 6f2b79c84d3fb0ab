"""Signals: SIGINT, SIGTERM or SIGHUP at a random moment of every command that writes.

The command ends by itself, within seconds, with the code of an interrupt and without a traceback,
or has already come to its end. The same command, run again, has the result of an undisturbed run.
"""

import random
from dataclasses import replace
from pathlib import Path

from benchmarks.faults import facts, kills, process
from benchmarks.faults.kills import Command
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.process import SIGNALS
from cache_tools.cli.guard import INTERRUPTED

_PATIENCE = 20.0
"""Seconds within which a command ends after a signal."""


def attempt(command: Command, seed: str, work: Path) -> Outcome:
    """Send one signal, let the command end, and run it again; judge."""
    random_ = random.Random(seed)
    command.lay_out(work)
    number = random_.choice(SIGNALS)
    moment = replace(kills.moment(random_, command), signal=number)
    when = f"{moment.seconds:.2f} s" if moment.seconds else f"change {moment.change}"
    told = f"{command.name}, seed {seed}: {number.name} at {when}: kdcache"
    told += f" {' '.join(command.arguments)}"
    ending = process.run(command.arguments, work, moment, _PATIENCE, command.prepare)
    if ending.hung or ending.code not in (0, INTERRUPTED):
        kind = "hung" if ending.hung else "traceback" if ending.traceback else "lost"
        return Outcome(kind, told, ending)
    if ending.traceback or "Exception ignored" in ending.text:
        return Outcome("traceback", told, ending)
    again = process.run(command.arguments, work, prepare=command.prepare)
    if again.code:
        return Outcome("lost", told, again)
    if differ := facts.differences(command.undisturbed, kills.result(work, again)):
        return Outcome("silent", f"{told}: other {', '.join(differ[:4])}", again)
    return Outcome("mended" if ending.code else "without effect", told, ending)
