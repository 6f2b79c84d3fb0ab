"""Runs of `kdcache cache` in processes of their own, and the files they write."""

import sys
import time
from pathlib import Path

import psutil

KDCACHE = str(Path(sys.executable).parent / "kdcache")
PATIENCE = 300.0
"""Seconds that a busy machine may take to start or end a process."""

SMALL = ["num_views=4", "views.mixup=0.5", "views_per_decode=1"]


def files(cache: Path) -> dict[str, bytes]:
    """Every file's bytes but those of commit records, which tell the time that a part took."""
    found = {str(p.relative_to(cache)): p for p in cache.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in found.items() if not n.startswith("commits/v")}


def arguments(digits: Path, teacher: Path, out: Path, *more: object) -> list[str]:
    words = ["cache", "digits", "--data", digits, "--teacher", teacher, "--out", out]
    return [*map(str, words), "--device=cpu", *SMALL, *map(str, more)]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they end; a number that another process has meanwhile does not count."""
    deadline = time.monotonic() + PATIENCE
    while any(alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that nobody waits for, as in a container, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
