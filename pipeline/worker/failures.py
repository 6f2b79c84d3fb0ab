"""Parts that could not be made: which errors are theirs, which are tried again, what to do next."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_tools.errors import CacheIncomplete, CacheMismatch, NonFinite, OutOfMemory
from cache_tools.runtime import invocation
from cache_tools.runtime.text import counted
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part

_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """A part that could not be made; plain values, which can be pickled."""

    part: Part
    """Part."""
    error: str
    """Text of the error."""
    kind: str
    """Name of the error's class."""


def is_of_a_part(error: Exception) -> bool:
    """Return True for errors of a part's own images or views: other parts may still be made."""
    return isinstance(error, OSError | CacheMismatch | NonFinite | OutOfMemory)


def refuse_failures(store: Cache, failures: Sequence[Failure]) -> None:
    """Raise CacheIncomplete if there are failures: the parts, the reasons, what to do."""
    if not failures:
        return
    reasons: dict[tuple[str, str], list[int]] = {}
    for failed in failures:
        numbers = reasons.setdefault((failed.kind, failed.error), [])
        numbers.append(info.part_number(store, failed.part))
    lines = [
        f"\n  parts {info.ranges(sorted(numbers))}: {kind}: {error}"
        for (kind, error), numbers in list(reasons.items())[:_SHOWN]
    ]
    if (more := len(reasons) - _SHOWN) > 0:
        lines.append(f"\n  and {counted(more, 'more reason')}.")
    many, program = len(failures) > 1, shlex.quote(invocation.program())
    raise CacheIncomplete(
        f"{counted(len(failures), 'part')} of {store.name} could not be made and "
        f"{'were' if many else 'was'} left out:{''.join(lines)}\n"
        f"All others are committed. `{program} status {store.name} --missing` lists the "
        f"missing ones; fix the cause and continue with: {command()}"
    )


def interrupted(store: Cache, signal: str) -> str:
    """Parts kept after a signal, and the command that continues."""
    facts = info.status(store)["parts"]
    kept = f"{facts['done']:,} of {counted(facts['total'], 'part')} of {store.name}"
    verb = "is committed and stays" if facts["total"] == 1 else "are committed and stay"
    by = f" by {signal}" if signal else ""
    return f"Stopped{by}. {kept} {verb}. Continue with: {command()}"


def command() -> str:
    """Return the running command, as typed by its user."""
    if Path(sys.argv[0]).name != "kdcache":
        return "the same command again"
    return shlex.join([invocation.program(), *sys.argv[1:]])
