"""Number of threads, by rule, with the reason for the log."""

import os

SMALL_VIEW = 64
"""Views of at most so many pixels on a side run on one torch thread."""
_max_cores = 2**16


def cpu_count() -> int:
    """Count the processor cores that this process may use."""
    return min(_all_cores(), _max_cores)


def share() -> float:
    """Share of the cores that this process may use, as one of several: 1 unless limited."""
    return cpu_count() / _all_cores()


def _all_cores() -> int:
    """Count the cores of this process and of those that share them with it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit(cores: int) -> None:
    """Limit this process to `cores`, as one of several that share a machine."""
    global _max_cores  # noqa: PLW0603 - a fact about the process
    _max_cores = max(1, cores)


def for_torch(view_size: int) -> tuple[int, str]:
    """Choose the number of threads for a network on the CPU, with the reason for the log.

    On images of at most 64 pixels an operation is over before a second thread has woken up: two
    threads on a busy two-core machine were measured many times slower than one.
    """
    if view_size <= SMALL_VIEW:
        return 1, f"1 torch thread: views of {view_size} px are too small to share between threads"
    return cpu_count(), f"{cpu_count()} torch threads: one per core for views of {view_size} px"
