"""Groups of parts in lots: long ones first, one group at the end, so that nobody is waited for.

A worker overlaps the stages of its work within a lot, hence not a group at a time; and a slow
worker must not hold the end up, hence not all in equal lots (Polychronopoulos and Kuck
1987: guided self-scheduling). What a lost worker had in hand goes to others, group by group.
"""

from collections import Counter, deque
from collections.abc import Sequence

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline.worker.job import Group

TRIES = 3
"""Workers that may be lost on one group before it is left out."""
_MOST = 8
"""Groups in the largest lot."""


class Lots:
    """Groups that wait for a worker."""

    def __init__(self, groups: Sequence[Group], takers: int) -> None:
        """Lots of `groups` for so many takers."""
        self._waiting = deque(groups)
        self._again: deque[Group] = deque()
        self._takers = takers
        self._lost: Counter[Group] = Counter()
        self.given_up: list[Group] = []
        """Groups that too many workers were lost on."""

    def __len__(self) -> int:
        return len(self._again) + len(self._waiting)

    def take(self) -> list[Group]:
        """The next lot; [] when none waits."""
        if self._again:
            return [self._again.popleft()]
        size = min(_MOST, max(1, len(self._waiting) // (2 * self._takers)))
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def give_back(self, left: Sequence[Group]) -> None:
        """Take back what a lost worker did not commit; the first of it is what it was at."""
        if not left:
            return
        first, *others = left
        self._lost[first] += 1
        if self._lost[first] == TRIES:
            self.given_up.append(first)
        else:
            self._again.append(first)
        self._again.extend(others)


def uncommitted(store: Cache, groups: Sequence[Group]) -> list[Group]:
    """What is left of a lot, by records and digests."""
    left = []
    for group in groups:
        views = tuple(v for v in group.views if store.check_part(Part(v, group.block)) is not None)
        if views:
            left.append(Group(group.block, views))
    return left


def rows(store: Cache, groups: Sequence[Group]) -> int:
    """Views in a lot."""
    return sum(len(group.views) * len(store.spec.rows(group.block)) for group in groups)


def names(groups: Sequence[Group]) -> str:
    """Groups in words."""
    return "; ".join(
        f"block {group.block}, view{'s' if len(group.views) > 1 else ''} "
        + ", ".join(map(str, group.views))
        for group in groups
    )
