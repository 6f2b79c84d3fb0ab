"""How many threads to use, by rule, and what to tell the user about it."""

import os

SMALL_VIEW = 64


_most = 2**16


def cpu_count() -> int:
    """Processor cores this process may use."""
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return min(len(here), _most)


def limit(cores: int) -> None:
    """Use at most so many cores, as one of several processes that share a machine."""
    global _most  # noqa: PLW0603 - a fact about the process
    _most = max(1, cores)


def for_torch(view_size: int) -> tuple[int, str]:
    """Threads for a network on the CPU, and the reason in words.

    On pictures of at most 64 pixels an operation is over before a second thread has woken up: two
    threads on a busy two-core machine were measured many times slower than one.
    """
    if view_size <= SMALL_VIEW:
        return 1, f"1 torch thread: views of {view_size} px are too small to share between threads"
    return cpu_count(), f"{cpu_count()} torch threads: one per core for views of {view_size} px"
