"""Work on many items over a network: a few in flight, none begun after a request to stop."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from cache_tools.runtime.signals import StopRequest

T = TypeVar("T")
R = TypeVar("R")
JOBS = 8
"""Parts in flight at once where nothing else is said."""
_MEMORY = 2**30


def max_in_flight(jobs: int, each: int) -> int:
    """How many pieces of work of `each` bytes fit into a gigabyte, at most `jobs`."""
    return max(1, min(jobs, _MEMORY // max(each, 1)))


def run_bounded(
    work: Callable[[T], R], items: Iterable[T], jobs: int, stop: StopRequest
) -> Iterator[tuple[T, Future[R]]]:
    """Items with their futures, in the order in which they end.

    Args:
        work: What is done with an item, in a thread.
        items: The items.
        jobs: How many are in flight.
        stop: Asked before another item is begun.
    """
    queue, running = iter(items), dict[Future[R], T]()
    with ThreadPoolExecutor(jobs, thread_name_prefix="flight") as pool:
        try:
            while True:
                free = 0 if stop.requested else jobs - len(running)
                running |= {pool.submit(work, item): item for item in islice(queue, free)}
                if not running:
                    return
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield running.pop(future), future
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
