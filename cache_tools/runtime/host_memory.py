"""Memory of the host: what this process may use of it, and the text where it does not suffice."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cache_tools.errors import UsageError
from cache_tools.runtime import launcher, threads

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limit() -> int:
    """Bytes that this process may use: the machine's, or the least limit of its control groups."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits_of_groups()])


def share() -> int:
    """Bytes of `limit` for this process, as one of several on this machine."""
    count = 1
    with contextlib.suppress(UsageError):
        count = launcher.find().local_count
    return int(limit() * min(threads.share(), 1 / count))


def shortage(doing: str, error: BaseException) -> str:
    """Return the text of an error for an allocation that failed while `doing` something."""
    return (
        f"there is not enough memory on this machine, apart from its GPU, to {doing} "
        f"({str(error) or type(error).__name__}). Close other programs or use fewer cores "
        "(taskset), and run the same command again."
    )


def shortage_for(where: object, error: BaseException) -> str:
    """Return the text where reading a file failed so, for which damage may be the reason, too."""
    return (
        shortage(f"read {where}", error)
        + " If it has memory for far more than the bytes of the file, that is damaged: fetch or "
        "write it again."
    )


def _limits_of_groups() -> Iterator[int]:
    """Read the limits of the control groups (version 1 or 2) of this process, parents included.

    In a container its own group is the root of the file system, whatever the kernel's name of it.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = _MEMBERSHIP.read_text().splitlines()
    for line in lines:
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        own = PurePosixPath(group.lstrip("/"))
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
                yield int((root / folder / name).read_text())
