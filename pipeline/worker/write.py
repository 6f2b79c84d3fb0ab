"""The last stage: what the teacher said becomes parts, encoded and committed beside it.

One thread takes batches and encodes them, another makes chunks of whole parts and commits them.
Neither stops the teacher, unless it says more than they can store.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from cache_tools.targets.statistics import part_statistics
from pipeline.teacher.forward import Forward
from pipeline.worker.executor import Lane
from pipeline.worker.groups import Group
from pipeline.worker.meter import Meter
from pipeline.worker.predict import Said, Span
from pipeline.worker.window import Window

BATCHES = 16
"""Batches that the teacher may be ahead."""
_MEMORY = 2**30
_MOST_PARTS = 16


@dataclass
class _Growing:
    """A part in the making."""

    stored: list[EncodedTargets] = field(default_factory=list)
    correct: float | None = None
    """Views whose most probable class is their label."""
    top_sum: float = 0.0
    """Sum of the highest probability of each view."""
    probes: dict[int, int] = field(default_factory=dict)
    views: int = 0


class Collector:
    """Takes what a teacher says and commits parts."""

    def __init__(self, store: Cache, forward: Forward, meter: Meter) -> None:
        """A collector for `store` of what `forward` says."""
        self._store, self._forward, self._meter = store, forward, meter
        self._growing: dict[Part, _Growing] = {}
        self._encode = Lane("encode", BATCHES)
        room = min(max(_MEMORY // store.spec.part_bytes, 1), _MOST_PARTS)
        self._commit = Lane("commit", room)
        self._device_done: torch.cuda.Event | None = None
        self._timed: Group | None = None
        self._timings: dict[str, float] = {}
        self.failed: dict[Part, Exception] = {}
        """Parts of which nothing more is taken, and why."""
        self._done: Callable[[int], None] = lambda _: None

    def begin(self, done: Callable[[int], None]) -> None:
        """Begin anew; `done` is told the number of views finished, negative when they are lost."""
        self.failed = {}
        self._done = done
        self._device_done = self._timed = None

    def take(self, said: Said | Span) -> None:
        """Take a batch; waits when the teacher is too far ahead.

        Raises:
            KdcacheError: A part could not be committed, or the teacher says NaN of everything.
        """
        work = self._span if isinstance(said, Span) else self._batch
        self._encode.hand(partial(work, said))  # type: ignore[arg-type]

    def end(self, window: Window, place: int) -> None:
        """All of a window in one view was taken; with the last one the part is committed."""
        group, view = window.group, window.group.views[place]
        probes = {row: pixels for (of, row), pixels in window.probes.items() if of == view}
        work = partial(self._end, Part(view, group.block), probes, group if window.last else None)
        self._encode.hand(work)

    def skip(self, views: int) -> None:
        """Count views that somebody else has made meanwhile."""
        self._encode.hand(partial(self._done, views))

    def fail(self, part: Part, error: Exception) -> None:
        """Drop a part."""
        self.failed[part] = error
        self._encode.hand(partial(self._forget, part))

    def finish(self) -> None:
        """Wait until all is committed, and drop parts that are not whole."""
        self._encode.finish()
        self._commit.finish()
        self._growing.clear()

    def drop(self) -> None:
        """Drop all that is not committed."""
        self._encode.drop()
        self._commit.drop()
        self._growing.clear()

    def close(self) -> None:
        """Stop the threads."""
        self._commit.close()
        self._encode.close()

    def _span(self, span: Span) -> None:
        """Count when the device worked and when it waited; milliseconds."""
        span.end.synchronize()
        self._meter.add("forward", span.begin.elapsed_time(span.end) / 1000)
        if self._device_done is not None:
            self._meter.add("wait", self._device_done.elapsed_time(span.begin) / 1000)
        self._device_done = span.end

    def _batch(self, said: Said) -> None:
        if said.part in self.failed:
            return
        if said.copied is not None:
            said.copied.synchronize()
        with self._meter.busy("commit"):
            self._add(said, codec.SparseTargets(*(t.numpy() for t in said.sparse)))

    def _add(self, said: Said, sparse: codec.SparseTargets) -> None:
        if error := self._not_finite(said, sparse.tail_BT):
            self.failed[said.part] = error
            self._forget(said.part)
            return
        spec, part = self._store.spec, self._growing.setdefault(said.part, _Growing())
        part.stored.append(codec.encode(sparse, spec.targets, spec.teacher.num_classes))
        part.top_sum += float(sparse.probability_BK[:, 0].sum())
        if not said.mixed and NO_LABEL not in said.label_BP:
            hit = sparse.index_BK[:, 0] == said.label_BP[:, 0]
            part.correct = (part.correct or 0.0) + float(hit.sum())
        part.views += len(said.rows)
        self._meter.count(len(said.rows))
        self._done(len(said.rows))

    def _not_finite(self, said: Said, tail_BT: NDArray[np.floating]) -> NonFinite | None:
        """What to say of a batch with NaN or Inf; raised when it is all NaN: no part will do."""
        bad = np.flatnonzero(~np.isfinite(tail_BT).all(axis=1))
        if not len(bad):
            return None
        key = self._store.table.keys[said.rows[int(bad[0])]]
        error = NonFinite(
            f"the teacher said NaN or Inf of view {said.part.view} of {key!r} ({len(bad)} of "
            f"{len(said.rows)} in its batch). Nothing of this part was stored. Use a wider type "
            f"than {self._store.spec.teacher.precision}, such as precision=fp32, or check the "
            "weights."
        )
        if len(bad) == len(said.rows) > 1:
            raise error
        return error

    def _forget(self, part: Part) -> None:
        lost = self._growing.pop(part, None)
        if lost is not None:
            self._done(-lost.views)

    def _end(self, part: Part, probes: dict[int, int], whole: Group | None) -> None:
        if part in self.failed:
            return
        made = self._growing[part]
        made.probes |= probes
        if whole is None:
            return
        if self._timed is not whole:  # the parts of a group were made at the same time
            self._timed, self._timings = whole, self._meter.lap()
        del self._growing[part]
        self._commit.hand(partial(self._write, part, made, self._timings))

    def _write(self, part: Part, made: _Growing, timings: dict[str, float]) -> None:
        with self._meter.busy("commit"):
            numbers = self._store.spec.rows(part.block)
            stored = codec.concatenate(made.stored)
            statistics = part_statistics(stored, made.top_sum, made.correct)
            probes = np.array([made.probes[n] for n in probe_numbers(numbers)], dtype=np.uint64)
            self._store.write(part, stored, probes, statistics | timings, self._versions())
        self._meter.parts += 1

    def _versions(self) -> dict[str, str]:
        device = self._forward.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        libraries = {
            package: version(package) for package in ("torch", "timm", "zarr", "numcodecs")
        }
        return {**render.versions(), **libraries, "device": name, "forward": self._forward.how}
