"""Kills: SIGKILL at a random moment of every command that writes, and the same command again.

A moment is a share of the undisturbed time, or the n-th change of the file system. The rerun may be
killed again; the last one runs to its end, and its result is that of an undisturbed run, byte for
byte. In half of the attempts, files that a kill leaves are aged by two hours: the rerun removes
them.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import facts, process
from benchmarks.faults.lab import Lab
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.process import Moment

_AGAIN = 0.3
"""Probability that a rerun is killed, too."""
_HOURS = 2 * 3600
_AGED = 0.5
"""Probability that what a kill leaves is made older than the hour after which it is removed."""


_SLOW = {"demo": 0.1, "report": 0.2, "sweep": 0.3, "train --against": 0.3, "train": 0.6}
"""Weights of commands that take several seconds."""


@dataclass
class Command:
    """A command that writes into its working folder."""

    name: str
    arguments: tuple[str, ...]
    copied: tuple[Path, ...] = ()
    """Inputs that it changes, copied into the working folder before."""
    prepare: Callable[[], None] | None = None
    """Called in its process before it begins."""
    undisturbed: facts.Facts = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    """Files that an undisturbed run writes."""
    seconds: float = 0.0
    weight: float = 1.0
    """Share of the usual number of attempts: slow commands get fewer."""

    def lay_out(self, work: Path) -> None:
        """Make an empty working folder with the inputs."""
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for source in self.copied:
            if source.is_dir():
                shutil.copytree(source, work / source.name)
            else:
                shutil.copy2(source, work / source.name)

    def measure(self, work: Path) -> None:
        """Run it twice without a kill."""
        found = []
        for _ in range(2):
            self.lay_out(work)
            ending = process.run(self.arguments, work, prepare=self.prepare)
            if ending.code:
                raise RuntimeError(f"{self.name}: {ending.text}")
            found.append(result(work, ending))
            self.seconds = ending.seconds
        self.undisturbed = facts.common(*found)
        self.names = frozenset(_written(work))


def attempt(command: Command, seed: str, work: Path) -> Outcome:
    """Kill the command once or more, and let it end; judge."""
    random_ = random.Random(seed)
    command.lay_out(work)
    told, kills = f"{command.name}, seed {seed}: killed at", 0
    aged = random_.random() < _AGED
    while True:
        again = kills == 0 or random_.random() < _AGAIN
        when = moment(random_, command) if again else Moment()
        ending = process.run(
            command.arguments, work, when if again else None, prepare=command.prepare
        )
        if ending.code == -signal.SIGKILL and not ending.hung:
            kills += 1
            told += f" {when.seconds:.2f} s" if when.seconds else f" change {when.change}"
            if aged:
                _age(work)
        elif kills:
            break
        else:  # it ended before the moment
            command.lay_out(work)
    told += f": kdcache {' '.join(command.arguments)}"
    if ending.hung or ending.traceback or ending.code:
        kind = "hung" if ending.hung else "traceback" if ending.traceback else "lost"
        return Outcome(kind, told, ending, kills=kills)
    left = _written(work) - command.names
    differ = facts.differences(command.undisturbed, result(work, ending))
    if differ:
        return Outcome("silent", f"{told}: other {', '.join(differ[:4])}", ending, kills=kills)
    if aged and left:
        words = f"{told}: {', '.join(sorted(left)[:4])}"
        return Outcome("leftovers stay", words, ending, len(left), kills)
    return Outcome("mended", told, ending, len(left), kills)


def _age(work: Path) -> None:
    """Make everything two hours old: the next run must remove what a kill has left."""
    before = time.time() - _HOURS
    for path in work.rglob("*"):
        os.utime(path, times=(before, before), follow_symlinks=False)


def commands(lab: Lab, url: str) -> list[Command]:
    """List every command that writes."""
    here = lab.folder
    recipe, shards, cache = (str(here / n) for n in ("recipe.toml", "shards", "c.zarr"))
    other, run, student = (str(here / n) for n in ("d.zarr", "run", "student.toml"))
    pictures = str(here / "pictures")
    stage1 = ("cache", recipe, "--teacher", str(here / "teacher1"), "--device=cpu")
    train = ("train", student, "--cache", cache, "--data", shards)

    listed = {
        "cache": (*stage1, "--data", shards, "--out", "c.zarr"),
        "cache, two workers": (*stage1, "--data", pictures, "--out", "c.zarr", "--workers", "2"),
        "cache from a URL": (*stage1, "--data", f"{url}/shards", "--out", "c.zarr"),
        "import dense": ("import", "dense", str(here / "logits.npy"), "--out", "c.zarr"),
        "pull": ("pull", f"{url}/c.zarr", "c.zarr"),
        "pull a part": ("pull", f"{url}/c.zarr", "c.zarr", "--views", "1:3", "--keep", "k=3"),
        "push": ("push", cache, "file://{work}/there", "--license", "mit"),
        "verify --repair": ("verify", "c.zarr", "--repair", "--from", f"{url}/c.zarr"),
        "select": ("select", cache, "s.zarr", "--views", "1:4", "--keep", "k=3"),
        "merge": ("merge", "m.zarr", str(here / "first.zarr"), str(here / "last.zarr")),
        "ensemble": ("ensemble", cache, other, "--out", "e.zarr"),
        "convert to webdataset": ("convert", cache, "out", "--to=webdataset", "--per-file=10"),
        "convert to parquet": ("convert", cache, "out", "--to", "parquet", "--per-file", "10"),
        "shard": ("shard", pictures, "out", "--shard-size", "8"),
        "shard --beton": ("shard", pictures, "out", "--short-side", "30", "--beton"),
        "beton": ("beton", pictures, "out/train.beton"),
        "beton --raw": ("beton", pictures, "out/train.beton", "--raw"),
        "train": (*train, "--out", "run"),
        "train --against": (*train, "--out", "runs", "--against=labels", "epochs=1"),
        "sweep": ("sweep", str(here / "grid.toml"), *train[2:], "--out", "sweep"),
        "export": ("export", run, "--out", "student", "--license", "mit"),
        "report": ("report", cache, run, "--data", shards, "--out", "r.html", "--views", "0"),
        "views": ("views", cache, "--data", shards, "--out", "v.png"),
        "card": ("card", cache, "--license", "mit", "--out", "card.md"),
        "eval": ("eval", run, "--data", shards, "--views", "16", "--json"),
        "demo": ("demo", "digits"),
    }
    return [
        Command(
            name,
            arguments,
            (here / "hurt/c.zarr",) if name == "verify --repair" else (),
            prepare=_short_demo if name == "demo" else None,
            weight=_SLOW.get(name, 1.0),
        )
        for name, arguments in listed.items()
    ]


def _short_demo() -> None:
    """Let the teacher of the demonstration learn for one epoch, in the process of the command."""
    from pipeline import demo

    demo.EPOCHS, demo.train_teacher.__defaults__ = 1, (0.0,)


def moment(random_: random.Random, command: Command) -> Moment:
    """Draw a moment of a command."""
    if random_.random() < 0.5:
        return Moment(seconds=random_.uniform(0.0, command.seconds))
    return Moment(change=1 + int(random_.random() ** 2 * 3 * len(command.names)))


def result(work: Path, ending: process.Ending) -> facts.Facts:
    """Collect the facts of what a command has written and printed."""
    return facts.of(work) | facts.of_text("stdout", ending.stdout if "{" in ending.stdout else "")


def _written(work: Path) -> set[str]:
    names = {n for n in facts.files(work) if not n.startswith(("kept/", "stdout", "stderr"))}
    return {n for n in names if "/tensorboard/" not in n and not n.endswith(".lock")}
