"""Damages: bits flipped; files cut, emptied, deleted, swapped, with bytes appended.

Each is done to a copy; one command that reads the copy is run. It must refuse and name the file
(and the command that mends must then mend it), or end with the result of an undisturbed run.
Anything else is a fault: "silent" is another result with exit code 0.
"""

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import facts, process
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.process import Ending

KINDS = ("flip", "flip", "flip", "truncate", "empty", "delete", "swap", "append")
_COMMIT = re.compile(r"/v(\d+)/b(\d+)\.json$")
_CHUNK = re.compile(r"/c/(\d+)/(\d+)$")
"""Kinds of damage; a flipped bit is as likely as three others together."""


_MENDED = 0.5
"""Probability that a refused subject is mended, too."""


@dataclass(frozen=True)
class Reader:
    """A command that reads a subject, and where its result is."""

    arguments: tuple[str, ...]
    results: tuple[str, ...] = ()
    """Files of its result, below its working folder; what it prints is one, with --json."""
    shows_what_is_there: bool = False
    """Its result may lack what a warning names: a drawing of a cache in the making."""


@dataclass
class Subject:
    """Files to damage: a folder, or a file with those beside it, copied into the working folder."""

    name: str
    sources: tuple[Path, ...]
    """Folder that is copied before each damage."""
    readers: tuple[Reader, ...]
    mends: tuple[Reader, ...] = ()
    """Commands that may make the subject whole again."""
    begun: bool = False
    """It is not finished: the first reader ends it, and so does what mends."""
    weight: float = 1.0
    """Its share of all damages."""
    heals: bool = False
    """A reader that refuses must succeed when it is run again, as nothing else mends."""
    undisturbed: dict[int, facts.Facts] = field(default_factory=dict)
    whole: facts.Facts = field(default_factory=dict)

    def lay_out(self, work: Path) -> None:
        """Copy the subject into an empty working folder."""
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for source in self.sources:
            if source.is_dir():
                shutil.copytree(source, work / source.name, symlinks=True)
            else:
                shutil.copy2(source, work / source.name)

    def measure(self, work: Path) -> None:
        """Run each reader twice on undamaged files, for the facts of its result."""
        known: dict[Reader, facts.Facts] = {}
        for number, reader in enumerate(self.readers):
            if reader in known:  # one that is drawn more often
                self.undisturbed[number] = known[reader]
                continue
            found = []
            for _ in range(2):
                self.lay_out(work)
                ending = read(reader, work)
                if ending.code:
                    raise RuntimeError(f"{self.name}: {' '.join(reader.arguments)}: {ending.text}")
                found.append(result(reader, work, ending))
            self.undisturbed[number] = known[reader] = facts.common(*found)
        if self.begun:
            self.whole = self.undisturbed[0]
            return
        self.lay_out(work)
        names = {source.name for source in self.sources}
        self.whole = {
            n: v
            for n, v in facts.of(work).items()
            if n.partition("/")[0].partition(":")[0] in names
        }
        if self.mends and not read(self.mends[-1], work).code:  # made anew: times and costs differ
            self.whole = facts.common(self.whole, facts.of(work))

    def damaged_files(self) -> list[str]:
        """Names of the files that can be damaged, below the working folder."""
        found = []
        for source in self.sources:
            inner = facts.files(source) if source.is_dir() else [""]
            found += [f"{source.name}/{n}".rstrip("/") for n in inner]
        return [name for name in found if not name.endswith(".lock")]


def read(reader: Reader, work: Path) -> Ending:
    """Run a reader."""
    return process.run(reader.arguments, work)


def result(reader: Reader, work: Path, ending: Ending) -> facts.Facts:
    """Facts of the result of a reader."""
    found = facts.of(work, reader.results) if reader.results else {}
    return found | (facts.of_text("stdout", ending.stdout.replace(str(work), "WORK")))


def damage(random_: random.Random, subject: Subject, work: Path) -> tuple[str, list[str]]:
    """Damage the copy in `work`; the words to reproduce it by, and the names of the files."""
    names = subject.damaged_files()
    kind, name = random_.choice(KINDS), random_.choice(names)
    path = work / name
    data = bytearray(path.read_bytes())
    if kind in ("flip", "truncate") and not data:
        kind = "append"
    if kind == "flip":
        at, bit = random_.randrange(len(data)), random_.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        return f"flip bit {bit} of byte {at} of {name}", [name]
    if kind == "truncate":
        size = random_.randrange(len(data))
        path.write_bytes(data[:size])
        return f"cut {name} to {size} of {len(data)} bytes", [name]
    if kind == "empty":
        path.write_bytes(b"")
        return f"empty {name}", [name]
    if kind == "delete":
        path.unlink()
        return f"delete {name}", [name]
    if kind == "append":
        more = random_.randbytes(random_.randrange(1, 64))
        path.write_bytes(bytes(data) + more)
        return f"append {more.hex()} to {name}", [name]
    other = random_.choice(names)
    path.write_bytes((work / other).read_bytes())
    (work / other).write_bytes(data)
    return f"swap {name} and {other}", [name, other]


def attempt(subject: Subject, seed: str, work: Path) -> Outcome:
    """Damage, read, mend; judge."""
    random_ = random.Random(seed)
    subject.lay_out(work)
    what, names = damage(random_, subject, work)
    number = random_.randrange(len(subject.readers))
    reader, expected = subject.readers[number], subject.undisturbed[number]
    told = f"{subject.name}: {what}; kdcache {' '.join(reader.arguments)}"
    ending = read(reader, work)
    found = result(reader, work, ending)
    differ = facts.differences(expected, found)
    incomplete = "stdout.json:parts:done" in differ and "stdout.json:parts:total" in found
    if bad := _fault(ending, [*names, '"done":'] if incomplete else names):
        return Outcome(bad, told, ending)
    warned = reader.shows_what_is_there and _names(ending.text, names)
    if ending.code == 0 and not incomplete and not (differ and warned):
        if differ:
            return Outcome("silent", f"{told}: other {', '.join(differ[:4])}", ending)
        return Outcome("mended" if _names(ending.text, names) else "without effect", told, ending)
    refused = Outcome("refused", told, ending)  # or it says how many parts are there
    mends = (reader,) if subject.heals else subject.mends if random_.random() < _MENDED else ()
    whole = expected if subject.heals else subject.whole
    for mend in mends:
        again = read(mend, work)
        now = result(mend, work, again) if subject.heals else facts.of(work)
        words = f"{told}, then {' '.join(mend.arguments)}"
        kind = _after(again, names, facts.differences(whole, now), subject.heals)
        if kind:
            return Outcome(kind, words, again)
    return refused


def _after(again: Ending, names: Sequence[str], differ: Sequence[str], heals: bool) -> str:
    """Kind of the ending of what mends; "" of a refusal, after which another may be tried."""
    if bad := _fault(again, names):
        return bad
    if again.code:
        return "stuck" if heals else ""
    return "not mended" if differ else "mended"


def _fault(ending: Ending, names: Sequence[str]) -> str:
    """Kind of the fault of an ending; "" if it is a success or a refusal that names the file."""
    if ending.hung:
        return "hung"
    if ending.traceback:
        return "traceback"
    if ending.code not in (0, 1, 2):
        return "crashed"
    if ending.code and not _names(ending.text, names):
        return "unnamed"
    return ""


def _names(text: str, names: Sequence[str]) -> bool:
    """Check if a text names one of the files, or the part of a cache that it belongs to."""
    return any(word in text for name in names for word in _words(name))


def _words(name: str) -> list[str]:
    """Names that a message may have for a file: its path, its name, its part of a cache."""
    words = [name, name.partition("/")[2], name.rpartition("/")[2]]
    if part := _COMMIT.search(name) or _CHUNK.search(name):
        words.append(f"view {int(part[1])}, block {int(part[2])}")
    if "/c/" in name:
        words.append(name.partition("/c/")[0])  # the array of a chunk
    if name.count("/") == 1 and name.endswith("/zarr.json"):
        words.append(f"no cache at {name.partition('/')[0]}")
    return [word for word in words if len(word) > 3]
