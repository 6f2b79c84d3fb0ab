"""Interface of the engines of stage 1.

An engine makes parts and commits them: `worker.stage1.Stage1` in this process, `local` in a process
for each GPU of this machine, `ray` in an actor for each GPU of a cluster. The commit records are
the only account of the parts done.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker process watches its parent before it imports anything heavy
    from cache_tools.store.cache import Cache
    from pipeline.worker.failures import Failure
    from pipeline.worker.groups import DecodeGroup
    from pipeline.worker.job import JobSpec


class Engine(Protocol):
    """Maker of parts, as a run uses it."""

    @property
    def store(self) -> "Cache":
        """The open cache."""
        ...

    def make(
        self, groups: "Sequence[DecodeGroup]", on_progress: Callable[[int], None]
    ) -> "list[Failure]":
        """Make and commit parts.

        Args:
            groups: Decode groups, in the order in which they are begun.
            on_progress: Called with the number of views finished; negative when they are lost.

        Returns:
            Parts that failed, each with the reason.

        Raises:
            KdcacheError: An error of more than a part; committed parts stay.
            KeyboardInterrupt: A signal came.
        """
        ...

    def note(self) -> str:
        """Parts done and load, in a few words."""
        ...

    def close(self) -> None:
        """Stop everything that it started."""
        ...


Open = Callable[["JobSpec"], Engine]
"""Function that opens an engine for a job."""
