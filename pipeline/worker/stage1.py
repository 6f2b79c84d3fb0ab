"""Stage 1 in one process: parts, from images to commit records, with a teacher that never waits.

The stages run at the same time, each in its own threads, with bounded queues between them; the
loop that connects them is `Stage1._run_windows`:

    render    render.py     read, decode once, render G views: a pool of threads, a window ahead
    predict   predict.py    upload, forward, choose classes: the calling thread, and the device
    encode    write.py      encode, gather statistics: one thread
    commit    write.py      make chunks, commit: one thread

They go on across the borders of windows, groups and blocks. The bytes of a part depend on nothing
but the size of batches: not on threads, groups, or the parts made before it.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from cache_tools.data.images import ImageDataset
from cache_tools.errors import OutOfMemory
from cache_tools.runtime import threads
from cache_tools.runtime.device import select
from cache_tools.runtime.signals import StopRequest
from cache_tools.runtime.text import counted
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline.teacher.forward import Forward, TeacherInput
from pipeline.teacher.logits import Execution
from pipeline.worker import failures, open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import DecodeGroup, decode_groups
from pipeline.worker.job import JobSpec, batch_size
from pipeline.worker.meter import Meter
from pipeline.worker.predict import Prediction, Predictor
from pipeline.worker.render import Renderer
from pipeline.worker.window import Window
from pipeline.worker.write import PartWriter

log = logging.getLogger("kdcache")
T = TypeVar("T")
TRIES = 3
"""Attempts at a part whose images cannot be read."""
PAUSE_SECONDS = 5.0
"""Pause before the second attempt; twice as long before the third."""
GRACE_SECONDS = 20.0
"""After a signal, a group that ends within this time is completed: Slurm kills after 30."""
Steps = Generator[Prediction, tuple[Tensor, ...] | None, T]
"""Batches on their way from the teacher to the encoder. A teacher that runs outside of this class
gets its pictures with a batch, and sends the sparse targets back."""


class Stage1:
    """Maker of the parts of one cache with one teacher.

    Making a part twice costs a forward pass and changes nothing.
    """

    predictor: type[Predictor] = Predictor

    def __init__(
        self,
        store: Cache,
        images: ImageDataset,
        forward: TeacherInput,
        batch_size: int,
        threads: int,
        agrees: bool = False,
    ) -> None:
        """Start the threads; `images` are in the order of the cache's sample table.

        With `agrees`, a teacher that agrees with the labels by chance only is an error.
        """
        self.store = store
        self.meter = Meter(threads)
        self._on_gpu = forward.device.type == "cuda"
        self._renderer = Renderer(store, images, threads, self.meter, self._on_gpu)
        self._predictor = self.predictor(store, forward, batch_size, self.meter)
        self._writer = PartWriter(store, forward, self.meter, agrees)
        self._group_size = 1

    @classmethod
    def open(cls, job: JobSpec) -> "Stage1":
        """Open or create the cache of a job and load its teacher.

        Raises:
            KdcacheError: Any of its kinds.
        """
        recipe, device = job.recipe, select(torch, job.device)
        if device.type == "cpu":
            count, reason = threads.for_torch(recipe.views.for_teacher().size)
            torch.set_num_threads(count)
            log.info("%s", reason)
        store, images, teacher = open_cache.open_job(job)
        execution = Execution(recipe.memory_format, recipe.compile)
        forward = Forward(teacher, store.spec.targets, device, execution)
        batch, cores = batch_size(recipe, device), threads.cpu_count()
        return cls(store, images, forward, batch, cores, job.agrees)

    def make(
        self, groups: Iterable[DecodeGroup], on_progress: Callable[[int], None]
    ) -> list[Failure]:
        """Make and commit parts, except those that another process commits meanwhile.

        One call for many groups keeps the teacher busy over their borders. An iterator is advanced
        one group ahead of the teacher, so that groups can be handed out as they are needed. In the
        main thread, SIGINT, SIGTERM, SIGUSR1 and SIGHUP stop it.

        Returns:
            Parts that failed, after further attempts where those may help, each with the reason.

        Raises:
            KdcacheError: An error of more than a part: a full disk, a teacher of NaN outputs.
            KeyboardInterrupt: A signal came; its text is the signal's name. Complete parts are
                committed.
        """
        steps = self.steps(groups, on_progress, stop := StopRequest())
        with stop:
            try:
                while True:
                    next(steps)
            except StopIteration as end:
                failed: list[Failure] = end.value
                return failed
            except KeyboardInterrupt:
                raise KeyboardInterrupt(stop.received) from None

    def steps(
        self, groups: Iterable[DecodeGroup], on_progress: Callable[[int], None], stop: StopRequest
    ) -> Steps[list[Failure]]:
        """Make and commit parts as `make`, batch by batch; complete parts stay when it is closed.

        Raises:
            KeyboardInterrupt: `stop` was requested.
        """
        failed_for_good: list[Failure] = []
        for attempt in range(1, TRIES + 1):
            failed = yield from self._run(groups, on_progress, stop)
            # reading recovers; NaN and other bytes do not
            again = [p for p, e in failed.items() if isinstance(e, OSError | OutOfMemory)]
            again = again if attempt < TRIES else []
            failed_for_good += [
                Failure(p, str(e), type(e).__name__) for p, e in failed.items() if p not in again
            ]
            if not again:
                break
            log.warning(
                "%s failed, tried again (try %d of %d): %s",
                counted(len(again), "part"), attempt + 1, TRIES, failed[again[0]],
            )  # fmt: skip
            groups = decode_groups(again, self._group_size)
            end = time.monotonic() + PAUSE_SECONDS * attempt
            while not stop.requested and time.monotonic() < end:
                time.sleep(0.05)
        return failed_for_good

    def note(self) -> str:
        """Parts done and shares of the stages, in a few words."""
        return self.meter.note()

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped."""
        self._renderer.close()
        self._writer.close()

    def _run(
        self, groups: Iterable[DecodeGroup], on_progress: Callable[[int], None], stop: StopRequest
    ) -> Steps[dict[Part, Exception]]:
        """Make parts in one attempt; those that failed, and why."""
        self.meter.start()
        self._writer.begin(on_progress)
        try:
            with self._renderer.stream(self._uncommitted(groups)) as windows:
                completed = yield from self._run_windows(iter(windows), stop)
            self._writer.finish()
        except GeneratorExit:
            self._writer.finish()
            raise
        finally:
            self._writer.drop()
        if not completed:
            raise KeyboardInterrupt
        return self._writer.failed

    def _uncommitted(self, groups: Iterable[DecodeGroup]) -> Iterator[DecodeGroup]:
        """Leave out parts that another process has committed meanwhile."""
        for group in groups:
            self._group_size = max(self._group_size, len(group.views))
            missing = [part for part in group.parts if self.store.check_part(part) is not None]
            if committed := len(group.views) - len(missing):
                self._writer.skip(committed * len(self.store.spec.rows(group.block)))
            if missing:
                yield DecodeGroup(group.block, tuple(part.view for part in missing))

    def _run_windows(self, windows: Iterator[Window], stop: StopRequest) -> Steps[bool]:
        """Take every window through the stages; False if a signal ended it early."""
        completing = False
        while True:
            # Render. The pool is a window ahead: time spent here is time the teacher waits.
            with contextlib.nullcontext() if self._on_gpu else self.meter.busy("wait"):
                window = next(windows, None)
            if window is None:
                return True
            first = self.store.spec.rows(window.group.block).start
            if stop.requested and window.rows.start == first:
                return False
            if window.error is not None and not failures.is_of_a_part(window.error):
                raise window.error
            for view_index, part in enumerate(window.group.parts):
                if window.error is not None and part not in self._writer.failed:
                    self._writer.fail(part, window.error)
                if part in self._writer.failed:
                    continue
                # Predict. On a GPU this only queues work; the device runs behind.
                for prediction in self._predictor.predict(window, view_index):
                    sparse = (yield prediction) or prediction.sparse
                    # Encode, in a thread of its own. Waits only if the teacher is far ahead.
                    self._writer.add_batch(replace(prediction, sparse=sparse))
                    if stop.requested and not completing:
                        completing = self._is_soon_done(window, view_index, prediction)
                        if not completing:
                            return False
                # Commit, in another thread, once the group's last window is in.
                self._writer.end_view(window, view_index)

    def _is_soon_done(self, window: Window, view_index: int, last: Prediction) -> bool:
        """Return True if the group of a window ends within the time of grace."""
        rows = self.store.spec.rows(window.group.block)
        done = len(window.rows) * view_index + last.rows.stop - window.rows.start
        left = (rows.stop - window.rows.start) * len(window.group.views) - done
        rate = max(self.meter.rate(), 1e-9)
        soon = left <= rate * GRACE_SECONDS
        outcome = f"completed first, {left / rate:.0f} s" if soon else "dropped"
        log.info("stop requested: the parts in hand are %s", outcome)
        return soon
