"""Guided self-scheduling of decode groups: long lots first, single groups at the end.

A worker overlaps the stages of its work within a lot, hence not a group at a time; and a slow
worker must not hold the end up, hence not all in equal lots (Polychronopoulos and Kuck
1987: guided self-scheduling). The lot of a lost worker goes to others, group by group.
"""

from collections import Counter, deque
from collections.abc import Sequence

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline.worker.groups import DecodeGroup

TRIES = 3
"""Workers that may be lost on one group before it is left out."""
_MAX_LOT = 8
"""Groups in the largest lot."""


class WorkQueue:
    """Decode groups that wait for a worker."""

    def __init__(self, groups: Sequence[DecodeGroup], workers: int) -> None:
        """Queue `groups` for `workers` workers."""
        self._waiting = deque(groups)
        self._again: deque[DecodeGroup] = deque()
        self._workers = workers
        self._lost: Counter[DecodeGroup] = Counter()
        self.given_up: list[DecodeGroup] = []
        """Groups on which too many workers were lost."""

    def __len__(self) -> int:
        return len(self._again) + len(self._waiting)

    def take(self) -> list[DecodeGroup]:
        """Take the next lot; [] if none waits."""
        if self._again:
            return [self._again.popleft()]
        size = min(_MAX_LOT, max(1, len(self._waiting) // (2 * self._workers)))
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def requeue(self, left: Sequence[DecodeGroup]) -> None:
        """Queue again the uncommitted groups of a lost worker, which was lost on the first."""
        if not left:
            return
        first, *others = left
        self._lost[first] += 1
        if self._lost[first] == TRIES:
            self.given_up.append(first)
        else:
            self._again.append(first)
        self._again.extend(others)


def uncommitted(store: Cache, groups: Sequence[DecodeGroup]) -> list[DecodeGroup]:
    """Filter the groups of a lot to its uncommitted parts, by records and digests."""
    left = []
    for group in groups:
        views = tuple(v for v in group.views if store.check_part(Part(v, group.block)) is not None)
        if views:
            left.append(DecodeGroup(group.block, views))
    return left


def rows(store: Cache, groups: Sequence[DecodeGroup]) -> int:
    """Count the views of groups."""
    return sum(len(group.views) * len(store.spec.rows(group.block)) for group in groups)


def names(groups: Sequence[DecodeGroup]) -> str:
    """Text for groups, in logs."""
    return "; ".join(
        f"block {group.block}, view{'s' if len(group.views) > 1 else ''} "
        + ", ".join(map(str, group.views))
        for group in groups
    )
