"""Watch over the processes that train together: where one is lost, the others end, with the reason.

A collective operation waits for all processes, for one that is stopped without end, and no signal
interrupts it. So every process counts up a number in the store by which they found each other, and
watches those of the others. It goes by counts, not by time: a job that is suspended as a whole goes
on.
"""

import logging
import os
import re
import threading

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cache_tools.errors import KdcacheError
from cache_tools.runtime.text import printable

log = logging.getLogger("kdcache")
SECONDS, PATIENCE = 5.0, 8
"""Seconds between counts, and counts without a sign of a process after which it is lost."""
_OF_A_BACKEND = re.compile("gloo|nccl", re.IGNORECASE)
_INTERRUPTED = "interrupted"
_LONGEST = 500


class Peers:
    """Two threads: one counts and reads, in the store; the other ends the process of a lost peer.

    The store never answers while the process that has it is stopped: only the first thread uses it.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Connect to the store, which process 0 or the launcher has, and begin."""
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store, self._rank = TCPStore(*place, is_master=False), rank
        self._keys = [f"kdcache/peers/{number}" for number in range(size)]
        self._values = [b""] * size
        self._last_words = ""
        self._ask, self._answered, self._left = (threading.Event() for _ in range(3))
        self._store.set(self._keys[rank], "0")
        for work in (self._count, self._watch):
            threading.Thread(target=work, name="peers", daemon=True).start()

    def leave(self, error: BaseException | None = None) -> None:
        """End the watch; an error of this process's own is put down for the others."""
        self._left.set()
        if isinstance(error, KeyboardInterrupt):
            self._last_words = _INTERRUPTED
        elif error is not None and not is_of_a_backend(error):
            self._last_words = f"{type(error).__name__}: {first_line(error)}"
        self._exchange()

    def lost(self, reason: str) -> KdcacheError | KeyboardInterrupt:
        """Return the error for a lost process, with the reason that it put down, if it did."""
        self._exchange()
        for number, value in enumerate(self._values):
            if value and not value.isdigit():
                reason = f"process {number}: {printable(value.decode(errors='replace'))}"
        text = (
            f"another process of this training has ended or hangs ({reason}), and this one ends, "
            "too. Run the same command again: it goes on from the last checkpoint."
        )
        return KeyboardInterrupt(text) if reason.endswith(_INTERRUPTED) else KdcacheError(text)

    def _exchange(self) -> None:
        """Write to the store and read it now, if it responds."""
        self._answered.clear()
        self._ask.set()
        self._answered.wait(SECONDS)

    def _count(self) -> None:
        beats = 0
        while True:
            beats += 1
            try:
                self._store.set(self._keys[self._rank], self._last_words or str(beats))
                self._values = self._store.multi_get(self._keys)
            except RuntimeError:  # the process that had it is gone: seen as no count of our own
                return
            self._answered.set()
            self._ask.wait(SECONDS)
            self._ask.clear()

    def _watch(self) -> None:
        before, silent = self._values, [0] * len(self._keys)
        while max(silent) < PATIENCE:
            if self._left.wait(SECONDS):
                return
            now = self._values
            silent = [n + 1 if now[i] == before[i] else 0 for i, n in enumerate(silent)]
            before = now
        of_store = silent[self._rank] >= PATIENCE
        who = "process 0 or the launcher" if of_store else f"process {silent.index(max(silent))}"
        log.error("%s", self.lost(f"no sign of {who} for {SECONDS * PATIENCE:.0f} s"))
        os._exit(KdcacheError.exit_code)  # the main thread may be in a collective operation


def is_of_a_backend(error: BaseException) -> bool:
    """Return True for errors of a collective operation, which the loss of a process causes."""
    known = isinstance(error, distributed.DistError)
    return known or (isinstance(error, RuntimeError) and bool(_OF_A_BACKEND.search(str(error))))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, of gloo's without its source and advice."""
    line = str(error).partition("\n")[0].partition(". This is typically")[0]
    return re.sub(r"^\[[^\]]*\] ", "", line)[:_LONGEST]
