"""What a run of stage 1 leaves behind, and what to do next."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_tools.errors import CacheIncomplete, CacheMismatch, NonFinite
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part

_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """A part that could not be made; plain values, so that it can be sent to another process."""

    part: Part
    """Which one."""
    error: str
    """Why, in words."""
    kind: str
    """Name of the error's class."""


def failure(part: Part, error: Exception) -> Failure:
    """A part and what kept it from being made."""
    return Failure(part, str(error), type(error).__name__)


def is_of_a_part(error: Exception) -> bool:
    """Whether an error is about a part's own images or views, so that others may still be made."""
    return isinstance(error, OSError | CacheMismatch | NonFinite)


def is_worth_another_try(error: Exception) -> bool:
    """Whether trying again may help: reading fails and recovers; NaN and other bytes stay."""
    return isinstance(error, OSError)


def refuse_failures(store: Cache, failures: Sequence[Failure]) -> None:
    """CacheIncomplete when there are failures: the parts, why, and what to do."""
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
        lines.append(f"\n  and {more} more reasons.")
    many = len(failures) > 1
    raise CacheIncomplete(
        f"{len(failures)} part{'s' if many else ''} of {store.name} could not be made and "
        f"{'were' if many else 'was'} left out:{''.join(lines)}\n"
        f"All others are committed. `kdcache status {store.name} --missing` lists what is not; "
        f"mend it and go on with: {command()}"
    )


def interrupted(store: Cache, signal: str) -> str:
    """What is kept after a signal, and how to go on."""
    facts = info.status(store)["parts"]
    return (
        f"Stopped{f' by {signal}' if signal else ''}. {facts['done']} of {facts['total']} parts of "
        f"{store.name} are committed and stay. Go on with: {command()}"
    )


def command() -> str:
    """The command that is running, as its user would type it again."""
    called = Path(sys.argv[0]).name
    return shlex.join([called, *sys.argv[1:]]) if called == "kdcache" else "the same command again"
