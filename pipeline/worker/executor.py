"""A thread that works off what it is handed, in order, while those who hand it in go on."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Lane:
    """One thread and a bounded queue.

    Whoever hands in more than there is room for waits. The first error ends the lane: what was
    handed in after it is dropped, and the error is raised where work is handed in or waited for.
    """

    def __init__(self, name: str, room: int) -> None:
        """A lane in which at most `room` pieces of work wait or are worked on."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._room = threading.BoundedSemaphore(room)
        self._error: BaseException | None = None

    def hand(self, work: Callable[[], None]) -> None:
        """Hand in work; waits while there is no room.

        Raises:
            BaseException: What earlier work has raised; `reset` forgets it.
        """
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._pool.submit(self._do, work)

    def finish(self) -> None:
        """Wait until all that was handed in is done; raises as `hand`."""
        self._pool.submit(lambda: None).result()
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Drop what waits, wait for what is being worked on, and forget its error."""
        self._error = self._error or InterruptedError("dropped")
        self._pool.submit(lambda: None).result()
        self._error = None

    def close(self) -> None:
        """Stop the thread; what has not begun is dropped."""
        self._error = self._error or InterruptedError("closed")
        self._pool.shutdown()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            if self._error is None:
                work()
        except BaseException as error:
            self._error = error
        finally:
            self._room.release()
