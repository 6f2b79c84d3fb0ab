"""Reading ahead in remote shards: few large requests for reads that follow each other.

Stage 1 goes through shards of `kdcache shard` from front to back, and a request per image would
wait for the network a million times. As kernels do for files, a read near the end of the one before
it doubles the request; a read elsewhere requests its own bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST, MOST = 2**20, 2**23
"""Bytes of the first request that reads ahead, and the most it doubles to."""
NEAR = 2**20
"""Reads this many bytes apart follow each other: threads overtake one another."""
_RUNS = 8


@dataclass
class _Run:
    """Recent reads of one shard."""

    last: int = -1
    """End of the furthest read; -1 before the first."""
    window: int = 0
    """Bytes of the last request that read ahead; 0 when reads do not follow each other."""
    held: list[tuple[int, bytes]] = field(default_factory=list)
    """The last two pieces read ahead: where each begins, and its bytes."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """One request at a time reads ahead, the others wait for its bytes."""

    def find(self, begin: int, end: int) -> bytes | None:
        """Bytes begin..end if they were read ahead."""
        for start, data in self.held:
            if start <= begin and end <= start + len(data):
                return data[begin - start : end - start]
        return None


class ReadAhead:
    """Parts of many shards, read from many threads."""

    def __init__(self, part: Callable[[int, int, int], bytes]) -> None:
        """Read by `part(shard, begin, end)`."""
        self._part = part
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, begin: int, end: int, size: int) -> bytes:
        """Bytes begin..end (half open) of a shard of `size` bytes."""
        with self._lock:
            run = self._runs.pop(shard, None) or _Run()
            self._runs[shard] = run
            while len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
        with run.lock:
            if (data := run.find(begin, end)) is not None:
                run.last = max(run.last, end)
                return data
            near = run.last >= 0 and abs(begin - run.last) <= NEAR
            run.window = min(max(2 * run.window, FIRST), MOST) if near else 0
            run.last = end if not near else max(run.last, end)
            if near:
                piece = self._part(shard, begin, min(max(end, begin + run.window), size))
                run.held = [*run.held[-1:], (begin, piece)]
                return piece[: end - begin]
        return self._part(shard, begin, end)
