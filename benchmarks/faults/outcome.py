"""Outcome of one attempt, figures of many, and their table."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.process import Ending

GOOD = ("survived", "mended", "refused", "without effect", "accepted")


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attempt."""

    kind: str
    """One of GOOD, or a fault: silent, not mended, traceback, unnamed, hung, …."""
    told: str
    """Command that reproduces it."""
    ending: Ending
    leftovers: int = 0
    """Files that a kill has left."""
    kills: int = 0

    @property
    def good(self) -> bool:
        """Whether this is how it should be."""
        return self.kind in GOOD


@dataclass
class Figures:
    """Outcomes of a family of attempts."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts of kinds by subject."""
    kills: int = 0
    leftovers: int = 0
    seconds: tuple[float, str] = (0.0, "")
    """Longest time, and of what."""
    bytes: tuple[int, str] = (0, "")
    """Most memory beyond an idle process, and of what."""
    faults: list[str] = field(default_factory=list)
    """List how to reproduce every attempt that did not end as it should."""

    def add(self, subject: str, outcome: Outcome, grown: int) -> None:
        """Count one attempt."""
        self.outcomes.setdefault(subject, Counter())[outcome.kind] += 1
        self.kills += outcome.kills
        self.leftovers += outcome.leftovers
        self.seconds = max(self.seconds, (outcome.ending.seconds, outcome.told))
        self.bytes = max(self.bytes, (grown, outcome.told))
        if not outcome.good:
            self.faults.append(f"{outcome.kind}: {outcome.told} | {outcome.ending.last_line[:300]}")

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        total = sum(self.outcomes.values(), Counter[str]())
        return {
            "attempts": sum(total.values()), "outcomes": dict(total),
            "silent": total["silent"], "by_subject": {k: dict(v) for k, v in self.outcomes.items()},
            "kills": self.kills, "leftovers": self.leftovers,
            "longest_seconds": self.seconds, "most_bytes": self.bytes, "faults": self.faults,
        }  # fmt: skip


def table(figures: dict[str, Figures]) -> str:
    """Return a row per subject: attempts, and how many ended in which way."""
    rows = []
    for family, found in figures.items():
        total = sum(found.outcomes.values(), Counter[str]())
        faults = [kind for kind in total if kind not in GOOD]
        columns = [
            *(kind for kind in GOOD if total[kind]),
            "silent",
            *sorted(set(faults) - {"silent"}),
        ]
        rows += [
            "",
            f"| {family} | attempts | {' | '.join(columns)} |",
            "|---" * (2 + len(columns)) + "|",
        ]
        for name, counts in [*found.outcomes.items(), ("**all**", total)]:
            cells = [str(sum(counts.values())), *(str(counts[kind]) for kind in columns)]
            rows.append(f"| {name} | {' | '.join(cells)} |")
        if found.kills:
            left = f"{found.leftovers} files younger than an hour were left by them"
            rows.append(f"\n{found.kills} kills; {left}.")
        if family == "hostile inputs":
            (seconds, slow), (size, large) = found.seconds, found.bytes
            slow, large = (told.partition(": kdcache")[0] for told in (slow, large))
            rows.append(f"\nLongest: {seconds:.1f} s ({slow}). Most memory beyond the libraries: ")
            rows[-1] += f"{size / 2**20:,.0f} MiB ({large})."
        rows += ["", *found.faults] if found.faults else []
    return "\n".join(rows)
