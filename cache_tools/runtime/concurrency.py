"""Bounded concurrency over a network: a few items in flight, none begun after a stop request."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from cache_tools.runtime.signals import StopRequest

T = TypeVar("T")
R = TypeVar("R")
JOBS = 8
"""Default number of parts in flight."""
_MEMORY = 2**30


def max_in_flight(jobs: int, item_bytes: int) -> int:
    """Return the number of items of `item_bytes` each that fit into a gigabyte, at most `jobs`."""
    return max(1, min(jobs, _MEMORY // max(item_bytes, 1)))


def run_bounded(
    work: Callable[[T], R], items: Iterable[T], jobs: int, stop: StopRequest
) -> Iterator[tuple[T, Future[R]]]:
    """Run `work` on items in threads and yield them with their futures, in the order they end.

    `stop` is polled before each item; once requested, no further item is begun.
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
