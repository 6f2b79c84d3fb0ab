"""Interface of the engines of stage 1.

An engine makes parts and commits them: `worker.job.Work` in this process, `local` in a process for
each GPU of this machine, `ray` in an actor for each GPU of a cluster. The commit records are the
only account of what is done.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker process watches its parent before it imports anything heavy
    from cache_tools.store.cache import Cache
    from pipeline.worker.job import Failure, Group, Job


class Engine(Protocol):
    """What a run needs of whoever does the work."""

    @property
    def store(self) -> "Cache":
        """The cache, opened."""
        ...

    def make(self, groups: "Sequence[Group]", done: Callable[[int], None]) -> "list[Failure]":
        """Make and commit parts.

        Args:
            groups: Which ones; the first ones are begun first.
            done: Called with the number of views finished, negative when they are lost again.

        Returns:
            Parts that were left out, each with the reason.

        Raises:
            KdcacheError: What concerns more than a part; what is committed stays.
            KeyboardInterrupt: A signal came.
        """
        ...

    def note(self) -> str:
        """How far it is and how busy, in a few words."""
        ...

    def close(self) -> None:
        """Stop everything that was started."""
        ...


Open = Callable[["Job"], Engine]
"""Opens an engine for a job."""
