"""Division of the minutes among sections, and of a section's seconds among rounds."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

Clock = Callable[[], float]
T = TypeVar("T")


class Demand(Protocol):
    """A section's demand for time."""

    @property
    def share(self) -> float:
        """Seconds of the nine minutes."""

    @property
    def least(self) -> float:
        """Seconds below which it does not begin: start and two rounds."""


class Budget:
    """Seconds of the whole command."""

    def __init__(self, seconds: float, sections: Sequence[Demand], clock: Clock = time.monotonic):
        """Start; the shares of the sections are scaled to fill the seconds."""
        self._clock, self._end = clock, clock() + seconds
        self._scale = seconds / sum(section.share for section in sections)

    @property
    def left(self) -> float:
        """Seconds to the end."""
        return self._end - self._clock()

    def allowed(self, section: Demand, later: Sequence[Demand]) -> float | None:
        """Return the seconds of a section, None if too few are left.

        They are its share and what earlier sections did not use; at least its least, at the expense
        of later sections.
        """
        left = self.left
        if left < section.least:
            return None
        own = left - self._scale * sum(one.share for one in later)
        return max(own, section.least)


class Allowance:
    """Seconds of one section."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Seconds to the end."""
        return self._end - self._clock()

    def rounds(self, most: int, least: int = 2) -> Iterator[int]:
        """Number rounds while another one like the longest fits; `least` of them in any case."""
        longest = 0.0
        for number in range(most):
            if number >= least and self.left < longest:
                return
            begin = self._clock()
            yield number
            longest = max(longest, self._clock() - begin)

    def turns(self, field: Mapping[str, Callable[[], T]], most: int) -> dict[str, list[T]]:
        """Let contestants take turns in rounds, each round from another one on."""
        found: dict[str, list[T]] = {name: [] for name in field}
        names = list(field)
        for number in self.rounds(most):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(field[name]())
        return found
