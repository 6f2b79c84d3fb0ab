"""Last stages: encode predictions, commit complete parts.

One thread encodes batches, another makes chunks of complete parts and commits them. Neither stops
the teacher, unless it is faster than they are for long.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.errors import NonFinite
from cache_tools.render import view as render
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.targets.statistics import check_agreement, part_statistics
from pipeline.teacher.forward import TeacherInput
from pipeline.worker.executor import SerialExecutor
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.meter import Meter
from pipeline.worker.predict import Prediction
from pipeline.worker.window import Window

CAPACITY = 16
"""Batches that the teacher may be ahead."""
_MEMORY = 2**30
_MAX_PARTS = 16
_OTHER_CLASSES = (
    "Its classes are probably others than those of the data set, or in another order: compare the "
    "two lists, and pass --class-map FILE, dataset.labels=ignore, or --force to go on."
)


@dataclass
class _PartBuilder:
    """A part in the making."""

    stored: list[EncodedTargets] = field(default_factory=list)
    correct: float | None = None
    """Views whose most probable class is their label."""
    hits: float = 0.0
    """Views whose most probable class is one of their labels."""
    labels: int = 0
    """Labels of a view: 2 where it is mixed; 0 where some have none."""
    top_sum: float = 0.0
    """Sum of the highest probability of each view."""
    probes: dict[int, int] = field(default_factory=dict)
    views: int = 0


class PartWriter:
    """Encoder and committer of parts, each in a thread of its own."""

    def __init__(
        self, store: Cache, forward: TeacherInput, meter: Meter, agrees: bool = False
    ) -> None:
        """Start the threads for parts of `store` that `forward` predicts.

        With `agrees`, a part whose teacher agrees with the labels by chance only is an error.
        """
        self._store, self._forward, self._meter, self._agrees = store, forward, meter, agrees
        self._builders: dict[Part, _PartBuilder] = {}
        self._encoding = SerialExecutor("encode", CAPACITY)
        capacity = min(max(_MEMORY // store.spec.part_bytes, 1), _MAX_PARTS)
        self._committing = SerialExecutor("commit", capacity)
        self._gpu_end: torch.cuda.Event | None = None
        self._timed: DecodeGroup | None = None
        self._timings: dict[str, float] = {}
        self.failed: dict[Part, Exception] = {}
        """Parts that are dropped, and why."""
        self._on_progress: Callable[[int], None] = lambda _: None

    def begin(self, on_progress: Callable[[int], None]) -> None:
        """Start anew; `on_progress` gets the views finished, negative when they are lost."""
        self.failed = {}
        self._on_progress = on_progress
        self._gpu_end = self._timed = None

    def add_batch(self, batch: Prediction) -> None:
        """Queue a batch; waits if the teacher is too far ahead.

        Raises:
            KdcacheError: A part could not be committed, or the teacher predicts NaN everywhere.
        """
        self._encoding.submit(self._encode, batch)

    def end_view(self, window: Window, view_index: int) -> None:
        """End a view of a window; that of a group's last window completes and commits the part."""
        group, view = window.group, window.group.views[view_index]
        probes = {row: probe for (of, row), probe in window.probes.items() if of == view}
        complete = group if window.last else None
        self._encoding.submit(self._end_view, Part(view, group.block), probes, complete)

    def skip(self, views: int) -> None:
        """Count views that another process has made meanwhile."""
        self._encoding.submit(lambda: self._on_progress(views))

    def fail(self, part: Part, error: Exception) -> None:
        """Drop a part."""
        self.failed[part] = error
        self._encoding.submit(self._drop_part, part)

    def finish(self) -> None:
        """Wait until all complete parts are committed, and drop the others."""
        self._encoding.finish()
        self._committing.finish()
        self._builders.clear()

    def drop(self) -> None:
        """Drop everything that is not committed."""
        self._encoding.drop()
        self._committing.drop()
        self._builders.clear()

    def close(self) -> None:
        """Stop the threads."""
        self._committing.close()
        self._encoding.close()

    # In the thread "encode".

    def _encode(self, batch: Prediction) -> None:
        if batch.part not in self.failed:
            if batch.copied is not None:
                batch.copied.synchronize()
            with self._meter.busy("commit"):
                self._add(batch, codec.SparseTargets(*(t.numpy() for t in batch.sparse)))
        if (interval := batch.gpu) is not None:  # milliseconds of work and of waiting
            interval.end.synchronize()
            self._meter.add("forward", interval.begin.elapsed_time(interval.end) / 1000)
            if self._gpu_end is not None:
                self._meter.add("wait", self._gpu_end.elapsed_time(interval.begin) / 1000)
            self._gpu_end = interval.end

    def _add(self, batch: Prediction, sparse: codec.SparseTargets) -> None:
        if error := self._not_finite(batch, sparse.tail_BT):
            self.failed[batch.part] = error
            self._drop_part(batch.part)
            return
        spec, builder = self._store.spec, self._builders.setdefault(batch.part, _PartBuilder())
        builder.stored.append(codec.encode(sparse, spec.targets, spec.teacher.num_classes))
        builder.top_sum += float(sparse.probability_BK[:, 0].sum())
        if NO_LABEL not in batch.label_BP:
            hit = (sparse.index_BK[:, :1] == batch.label_BP).any(axis=1)
            builder.hits, builder.labels = builder.hits + float(hit.sum()), batch.label_BP.shape[1]
        if not batch.mixed and NO_LABEL not in batch.label_BP:
            hit = sparse.index_BK[:, 0] == batch.label_BP[:, 0]
            builder.correct = (builder.correct or 0.0) + float(hit.sum())
        builder.views += len(batch.rows)
        self._meter.count(len(batch.rows))
        self._on_progress(len(batch.rows))

    def _not_finite(self, batch: Prediction, tail_BT: NDArray[np.floating]) -> NonFinite | None:
        """Error of a batch with NaN or Inf; raised if every row is: other parts would fail, too."""
        bad = np.flatnonzero(~np.isfinite(tail_BT).all(axis=1))
        if not len(bad):
            return None
        key = self._store.table.keys[batch.rows[int(bad[0])]]
        error = NonFinite(
            f"the teacher predicted NaN or Inf for view {batch.part.view} of {key!r} ({len(bad)} "
            f"of {len(batch.rows)} in its batch). Nothing of this part was stored. Use a wider "
            f"type than {self._store.spec.teacher.precision}, such as precision=fp32, or check "
            "the weights."
        )
        if len(bad) == len(batch.rows) > 1:
            raise error
        return error

    def _drop_part(self, part: Part) -> None:
        if (lost := self._builders.pop(part, None)) is not None:
            self._on_progress(-lost.views)

    def _end_view(self, part: Part, probes: dict[int, int], complete: DecodeGroup | None) -> None:
        if part in self.failed:
            return
        self._builders[part].probes |= probes
        if complete is None:
            return
        if self._timed is not complete:  # the parts of a group are made at the same time
            self._timed, self._timings = complete, self._meter.since_last()
        self._committing.submit(self._commit, part, self._builders.pop(part), self._timings)

    # In the thread "commit".

    def _commit(self, part: Part, builder: _PartBuilder, timings: dict[str, float]) -> None:
        with self._meter.busy("commit"):
            rows = self._store.spec.rows(part.block)
            if self._agrees and builder.labels and self._store.spec.dataset.labels:
                chance = builder.labels / self._store.spec.teacher.num_classes
                check_agreement(builder.hits, builder.views, chance, str(part), _OTHER_CLASSES)
            stored = codec.concatenate(builder.stored)
            statistics = part_statistics(stored, builder.top_sum, builder.correct)
            probes = np.array([builder.probes[n] for n in probe_numbers(rows)], dtype=np.uint64)
            device = self._forward.device
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
            versions = render.versions()
            versions |= {p: version(p) for p in ("torch", "timm", "zarr", "numcodecs")}
            versions |= {"device": name, "forward": self._forward.how}
            self._store.write(part, stored, probes, statistics | timings, versions)
        self._meter.parts += 1
