"""Write a cache with a teacher that runs in the caller's own program.

Stage 1 runs as it is, a batch at a time: rendering ahead, encoding and commits in their threads,
resume, and all that it refuses. In place of a network, `CacheWriter.batches` hands the pictures
out, and `CacheWriter.put` takes the logits. The loop is the caller's: an error or Ctrl-C in it
ends the stage there and then, and no thread waits for a batch that never comes.

Shapes: B views of a batch, S pixels a side, C classes.
"""

import logging
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images, resolve
from cache_tools.errors import NonFinite, UsageError
from cache_tools.runtime import threads
from cache_tools.runtime.device import select
from cache_tools.runtime.progress import shown
from cache_tools.runtime.signals import StopRequest
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.store import presence
from cache_tools.store.cache import Cache
from cache_tools.targets import dense
from pipeline import recipe as recipes
from pipeline.engines import launch
from pipeline.recipe import CacheRecipe
from pipeline.run import CacheResult, PartSelection, find_missing, views_bar
from pipeline.teacher.info import TeacherInfo
from pipeline.teacher.sparsify import sparsify
from pipeline.worker import failures, open_cache
from pipeline.worker.failures import Failure
from pipeline.worker.groups import decode_groups
from pipeline.worker.hand_out import HandingOut, Pictures
from pipeline.worker.predict import Prediction
from pipeline.worker.stage1 import Steps

log = logging.getLogger("kdcache")


@dataclass(frozen=True, eq=False)
class WriterBatch:
    """Views that wait for the logits of their teacher.

    Attributes:
        images: [B, 3, S, S] fp32 on the device, mixed and normalised; [B, S, S, 3] in memory,
            unless the recipe has memory_format=contiguous.
        view: Number of the view of each sample.
        keys: The B samples.
        labels: [B, 1] classes of the samples, [B, 2] with those of the partners if mixed; -1: none.
    """

    images: Tensor
    view: int
    keys: tuple[str, ...]
    labels: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        """Count the views."""
        return len(self.keys)

    def __str__(self) -> str:
        """Name the views."""
        return f"view {self.view} of {self.keys[0]!r} … {self.keys[-1]!r} ({len(self)} samples)"


class CacheWriter:
    """A cache in the making, by a teacher that runs in the caller's program; see `create`.

    Attributes:
        store: The cache as the commands see it.
    """

    def __init__(
        self,
        store: Cache,
        images: ImageDataset,
        recipe: CacheRecipe,
        device: torch.device,
        selection: PartSelection,
        force: bool,
        progress: bool,
    ) -> None:
        self.store = store
        self._images, self._recipe, self._device = images, recipe, device
        self._selection, self._force, self._progress = selection, force, progress
        self._iteration: weakref.ref[Generator[WriterBatch, None, None]] | None = None
        self._batch: WriterBatch | None = None
        self._answer: tuple[Tensor, ...] | None = None
        self._error: Exception | None = None
        self._unchecked, self._closed = True, False

    def batches(self, batch_size: int = 256) -> Iterator[WriterBatch]:
        """Iterate over the views that are missing; each batch gets its logits by `put`.

        Parts are committed as they become whole. Ending the loop early (break, an error, Ctrl-C)
        drops the parts that are not whole; a new iteration takes up what is missing.

        Args:
            batch_size: Views of a batch; the last one of a view and a window of 1,024 rows may be
                smaller. As for `kdcache cache`, it can change the last bits of targets.

        Raises:
            UsageError: A batch was not given its logits, or the writer is closed.
            CacheIncomplete: Parts were left out, such as those of images that cannot be read.
            DataError: The logits agree with the labels by chance only; `force` goes on.
        """
        if self._closed:
            raise UsageError(f"the writer of {self.store.name} is closed. Create another.")
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be positive.")
        self._end_iteration()
        iteration = self._iterate(batch_size)
        self._iteration = weakref.ref(iteration)
        # A loop left open by the program's end is closed before the executors of threads end, as
        # those of concurrent.futures are, by the same function.
        threading._register_atexit(_close, self._iteration)  # type: ignore[attr-defined]
        return iteration

    def put(self, batch: WriterBatch, logits: "Tensor | ArrayLike") -> None:
        """Give a batch its logits. What is refused is not stored; the batch can be put again.

        Args:
            batch: The batch that `batches` yielded last.
            logits: [B, C] before the softmax: a tensor on any device, or what `numpy.asarray` takes
                (an array of NumPy, JAX or TensorFlow), of any real type; fp32 is stored.

        Raises:
            UsageError: Another shape or type, or no batch that waits for logits.
            NonFinite: NaN or Inf among them; the first such sample is named.
            TeacherError: They are probabilities.
        """
        if batch is not self._batch:
            raise UsageError(
                f"{batch} does not wait for logits: it had them before, its loop has ended, or it "
                "is of another writer. Put each batch once, before the next one is taken."
            )
        if self._answer is not None:
            raise UsageError(f"{batch} has its logits already. Put each batch once.")
        spec = self.store.spec
        logits_BC, wanted = _fp32(logits, batch), (len(batch), spec.teacher.num_classes)
        if tuple(logits_BC.shape) != wanted:
            raise UsageError(
                f"logits of the shape {[*logits_BC.shape]} for {batch}, expected {[*wanted]}."
            )
        finite_B = torch.isfinite(logits_BC).all(1)
        if not finite_B.all():
            first = int((~finite_B).int().argmax())
            raise NonFinite(
                f"the logits are NaN or Inf in fp32 for view {batch.view} of {batch.keys[first]!r} "
                f"({int((~finite_B).sum())} of {len(batch)} in its batch). Nothing of this batch "
                "was stored. Compute in a wider type, or check the weights."
            )
        if self._unchecked:
            dense.refuse_probabilities(f"the teacher {spec.teacher.name}", logits_BC.cpu().numpy())
            self._unchecked = False
        label_BP = torch.from_numpy(batch.labels).to(logits_BC.device)
        with torch.inference_mode():
            sparse = sparsify(logits_BC, spec.targets, label_BP)
            self._answer = tuple(field.cpu() for field in sparse)

    def close(self) -> CacheResult:
        """End writing: whole parts are committed, others left to the next call of `create`.

        Returns:
            What the cache contains, as of `make_cache`.

        Raises:
            KdcacheError, OSError: A part could not be committed.
        """
        self._closed = True
        self._end_iteration()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return CacheResult.of(self.store)

    def __enter__(self) -> Self:
        """Return the writer itself, closed at the end of the body."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # which is the one to report
            self._closed = True
            self._end_iteration()

    def _end_iteration(self) -> None:
        """End the loop that is open, if any."""
        if self._iteration is not None:
            _close(self._iteration)

    def _iterate(self, batch_size: int) -> Generator[WriterBatch, None, None]:
        store, size, failed = self.store, self._recipe.views_per_decode, list[Failure]()
        with ExitStack() as stack:
            if self._selection.tasks == 1:
                presence.warn_of_others(store)
            stack.enter_context(presence.announced(store))
            with shown(self._progress):
                todo = find_missing(store, self._selection, size)
                advance = stack.enter_context(views_bar(store, todo, self._selection))
            pictures = Pictures(store.spec.teacher, self._device, self._recipe.memory_format)
            cores, agrees = threads.cpu_count(), not self._force
            stage = HandingOut(store, self._images, pictures, batch_size, cores, agrees)
            stack.callback(stage.close)
            steps = stage.steps(
                decode_groups(todo, size, self._recipe.order),
                lambda n: advance(n, stage.note()),
                StopRequest(),
            )
            stack.callback(steps.close)
            sparse = None
            try:
                while True:
                    self._batch, self._answer = self._new(steps.send(sparse)), None
                    yield self._batch
                    if (sparse := self._answer) is None:
                        raise UsageError(
                            f"{self._batch} got no logits. Call put before the next batch is taken."
                        )
            except StopIteration as end:
                failed = end.value
            except GeneratorExit:
                self._finish(steps)
                raise
            finally:
                self._batch = self._answer = None
        failures.refuse_failures(store, failed)

    def _finish(self, steps: Steps[list[Failure]]) -> None:
        """Commit what is whole when the loop is left; nothing can be raised there."""
        try:
            if self._answer is not None:
                steps.send(self._answer)
            steps.close()
        except StopIteration:
            pass
        except Exception as error:
            self._error = error
            log.error("%s", error)

    def _new(self, views: Prediction) -> WriterBatch:
        keys = tuple(self.store.table.keys[views.rows.start : views.rows.stop])
        return WriterBatch(views.sparse[0], views.part.view, keys, views.label_BP)


def _close(iteration: weakref.ref[Generator[WriterBatch, None, None]]) -> None:
    if (still := iteration()) is not None:
        still.close()


def _fp32(logits: "Tensor | ArrayLike", batch: WriterBatch) -> Tensor:
    """Logits as fp32, on their device."""
    if not isinstance(logits, Tensor):
        array = np.asarray(logits)
        if array.dtype.kind not in "bcOSUmM":  # the kinds of bfloat16 and its like are many
            return torch.from_numpy(array.astype(np.float32))
    elif not (logits.is_complex() or logits.dtype is torch.bool):
        return logits.detach().float()
    found = logits.dtype if isinstance(logits, Tensor) else array.dtype
    raise UsageError(f"logits of the type {found} for {batch}, expected real numbers [B, C].")


def create(
    out: str | Path,
    *,
    recipe: str | Path | Mapping[str, Any] | CacheRecipe,
    data: str | Path,
    teacher: TeacherInfo | TeacherSpec,
    values: Mapping[str, Any] | None = None,
    device: str | None = None,
    task: int | None = None,
    tasks: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> CacheWriter:
    """Create a cache, or go on with one, to write the targets of a teacher of the caller's own.

        >>> info, values = kdcache.TeacherInfo.of(model, "our-teacher"), {"num_views": 1}
        >>> with kdcache.create(
        ...     "out.zarr", recipe="digits", values=values, data="digits", teacher=info
        ... ) as writer:
        ...     for batch in writer.batches(batch_size=256):
        ...         writer.put(batch, model(batch.images))
        >>> writer.close().parts_done
        1

    The cache is the one that `kdcache cache` makes: parts are atomic, run again what is missing is
    made, and the pictures are those that a student draws again.

    Args:
        out: Folder or URL of the cache.
        recipe: A recipe's name, file, keys, or the recipe itself.
        data: Folder of shards or images, a pattern, or a URL.
        teacher: Identity of the teacher.
        values: Keys of the recipe to override: {"num_views": 4, "views.mixup": 0.5}.
        device: Device of the pictures: "cuda", "cuda:1", "cpu"; None: a GPU if there is one.
        task: Number of this process among `tasks` that share the work, from 0; None: as torchrun,
            srun, mpirun or a Slurm array has it.
        tasks: Count of those processes.
        force: True to go on with a teacher that agrees with the labels by chance only.
        progress: True for a progress bar on a terminal.

    Raises:
        UsageError, RecipeError: An argument that cannot be.
        TeacherError: A field of the teacher cannot be.
        CacheMismatch: There is another cache at `out`, or the labels have other classes.
        DataError: Images that cannot be read.
    """
    loaded = recipes.load(recipe, values=values)
    spec = teacher if isinstance(teacher, TeacherSpec) else teacher.spec
    mine = launch.choose(task, tasks)
    several = mine.local_count > 1
    if several:
        threads.limit(threads.cpu_count() // mine.local_count)
    chosen = select(torch, device, mine.local if several else None)
    with shown(progress):
        images = open_images(str(data), loaded.dataset.split)
        store, images = open_cache.open_or_create(loaded, images, spec, str(out))
    store.set_data_path(resolve(str(data)))
    selection = PartSelection(mine.number, mine.count)
    return CacheWriter(store, images, loaded, chosen, selection, force, progress)
