"""Single-thread executor with a bounded queue: work in order, beside the thread that submits it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVarTuple

Args = TypeVarTuple("Args")


class SerialExecutor:
    """One thread and a bounded queue.

    `submit` waits while the queue is full. The first error ends the work: everything submitted
    after it is dropped, and the next `submit` or `finish` raises it.
    """

    def __init__(self, name: str, capacity: int) -> None:
        """Start the thread; at most `capacity` calls wait or run."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._capacity = threading.BoundedSemaphore(capacity)
        self._error: BaseException | None = None
        self._last: Future[None] | None = None

    def submit(self, work: Callable[[*Args], None], *args: *Args) -> None:
        """Queue a call; waits while the queue is full.

        Raises:
            BaseException: The error of an earlier call; `drop` clears it.
        """
        self._capacity.acquire()
        if self._error is not None:
            self._capacity.release()
            raise self._error
        self._last = self._pool.submit(self._run, lambda: work(*args))

    def finish(self) -> None:
        """Wait until all calls are done; raises as `submit`."""
        self._wait()
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Drop waiting calls, wait for the running one, and clear the error."""
        self._error = self._error or InterruptedError("dropped")
        self._wait()
        self._error = None

    def close(self) -> None:
        """Stop the thread; waiting calls are dropped."""
        self._error = self._error or InterruptedError("closed")
        self._pool.shutdown()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            if self._error is None:
                work()
        except BaseException as error:
            self._error = error
        finally:
            self._capacity.release()
