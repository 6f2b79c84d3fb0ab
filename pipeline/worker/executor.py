"""Single-thread executor with a bounded queue: work in order, beside the thread that submits it."""

import threading
from collections.abc import Callable
from functools import partial
from queue import Queue
from typing import TypeVarTuple

Args = TypeVarTuple("Args")


class SerialExecutor:
    """One thread and a bounded queue.

    `submit` waits while the queue is full. The first error ends the work: everything submitted
    after it is dropped, and the next `submit` or `finish` raises it.

    The thread is a daemon: it serves until the program's `atexit` functions have run, where an
    executor of concurrent.futures refuses work before them.
    """

    def __init__(self, name: str, capacity: int) -> None:
        """Start the thread; at most `capacity` calls wait or run."""
        self._calls: Queue[Callable[[], None] | None] = Queue()
        self._capacity = threading.BoundedSemaphore(capacity)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[*Args], None], *args: *Args) -> None:
        """Queue a call; waits while the queue is full.

        Raises:
            BaseException: The error of an earlier call; `drop` clears it.
        """
        self._capacity.acquire()
        if self._error is not None:
            self._capacity.release()
            raise self._error
        self._calls.put(partial(work, *args))

    def finish(self) -> None:
        """Wait until all calls are done; raises as `submit`."""
        self._calls.join()
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Drop waiting calls, wait for the running one, and clear the error."""
        self._error = self._error or InterruptedError("dropped")
        self._calls.join()
        self._error = None

    def close(self) -> None:
        """Stop the thread; waiting calls are dropped."""
        self._error = self._error or InterruptedError("closed")
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                if self._error is None:
                    call()
            except BaseException as error:
                self._error = error
            finally:
                del call  # and what it holds: parts are large
                self._capacity.release()
                self._calls.task_done()
        self._calls.task_done()
