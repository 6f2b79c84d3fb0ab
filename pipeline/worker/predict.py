"""Inference stage: upload windows, run the teacher, fetch sparse targets.

A view of a window is uploaded as a whole, on a stream of its own, while the teacher is busy with
the one before; partners of mixup are then picked on the device. Batches never cross the borders of
a window or a view, so that the targets of a view depend on nothing but the size of batches. They
are copied to page-locked memory while the teacher goes on. On the CPU the same calls copy nothing.
Events that threads wait for are blocking ones: a thread that waits leaves its core to rendering.

Shapes: B views of a batch, W rows of a window, S pixels a side, P labels of a view.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.errors import TeacherError
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw
from pipeline.teacher import page_locked
from pipeline.teacher.forward import TeacherInput
from pipeline.worker.meter import Meter
from pipeline.worker.window import Window

log = logging.getLogger("kdcache")
T = TypeVar("T")


@dataclass(frozen=True)
class GpuInterval:
    """Begin and end of a GPU's work on a view of a window."""

    begin: torch.cuda.Event
    end: torch.cuda.Event


@dataclass(frozen=True)
class Prediction:
    """Sparse teacher targets of one batch."""

    part: Part
    """Part of the batch."""
    rows: range
    """Its B rows of the sample table."""
    label_BP: NDArray[np.int64]
    """Their labels."""
    mixed: bool
    """True if the views were mixed."""
    sparse: tuple[Tensor, ...]
    """Fields of `codec.SparseTargets` in the host's memory, complete after `copied`."""
    copied: torch.cuda.Event | None = None
    """End of the copy; None: nothing to wait for."""
    gpu: GpuInterval | None = None
    """Time of the view on the GPU, with its last batch."""


class Predictor:
    """A teacher's inference, in batches as large as its device can hold."""

    def __init__(self, store: Cache, forward: TeacherInput, batch_size: int, meter: Meter) -> None:
        """Start with batches of `batch_size` views; they are halved when memory runs out."""
        self.batch_size = batch_size
        self._store, self._forward, self._meter = store, forward, meter
        self._seen = store.spec.views.for_teacher()
        self._device = forward.device
        self._on_gpu = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if self._on_gpu else None  # type: ignore[no-untyped-call]

    def predict(self, window: Window, view_index: int) -> Iterator[Prediction]:
        """Predict the group's view number `view_index`, batch by batch.

        Raises:
            TeacherError: Not even a single view fits into the device's memory.
        """
        view, rows = window.group.views[view_index], window.rows
        mix = None
        if self._seen.mixes:
            mix = view_params.mixing(self._store, view, rows.start, rows.stop, self._seen)
            mix = replace(mix, partner_B=mix.partner_B - rows.start)
        own = self._store.table.label_N[rows.start : rows.stop].astype(np.int64)
        label_WP = np.stack([own] if mix is None else [own, own[mix.partner_B]], axis=1)
        pixels = self._fit_memory(lambda: self._upload(window, view_index))
        begin = self._mark()
        done = 0
        while done < len(rows):
            # A GPU's time is measured there.
            with contextlib.nullcontext() if self._on_gpu else self._meter.busy("forward"):
                at, sparse = self._fit_memory(partial(self._batch, pixels, mix, label_WP, done))
            done = at.stop
            sparse, copied = self._to_host(sparse)
            interval = None
            if done == len(rows) and begin is not None and (end := self._mark()) is not None:
                interval = GpuInterval(begin, end)
            part = Part(view, window.group.block)
            mixed = mix is not None
            yield Prediction(part, rows[at], label_WP[at], mixed, sparse, copied, interval)

    def _batch(
        self, pixels: Tensor, mix: draw.MixParams | None, label_WP: NDArray[np.int64], begin: int
    ) -> tuple[slice, tuple[Tensor, ...]]:
        at = slice(begin, min(begin + self.batch_size, len(pixels)))
        other = part_of = None
        if mix is not None:
            part_of = draw.MixParams(mix.partner_B[at], mix.lam_B[at], mix.cut_B4[at])
            chosen = torch.from_numpy(part_of.partner_B.astype(np.int64))
            other = pixels[page_locked.upload(chosen, self._device)]
        return at, self._forward(pixels[at], other, part_of, label_WP[at])

    def _to_host(
        self, outputs: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
        """Begin to copy outputs of the device; the copies, and the event of their end."""
        if not self._on_gpu:
            return outputs, None
        here = tuple(page_locked.empty(tuple(t.shape), t.dtype) for t in outputs)
        for to, there in zip(here, outputs, strict=True):
            to.copy_(there, non_blocking=True)
        return here, self._mark()

    def _upload(self, window: Window, view_index: int) -> Tensor:
        """Upload a view of a window, [W, S, S, 3]; on the CPU, return the buffer itself."""
        pixels = torch.from_numpy(window.pixels[view_index])
        if self._copies is None or window.buffer is None:
            return pixels
        with torch.cuda.stream(self._copies):
            there = pixels.to(self._device, non_blocking=True)
            window.buffer.uploaded = uploaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            uploaded.record(self._copies)
        teacher = torch.cuda.current_stream(self._device)
        teacher.wait_event(uploaded)
        there.record_stream(teacher)
        return there

    def _mark(self) -> torch.cuda.Event | None:
        """Record an event on the teacher's stream."""
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _fit_memory(self, work: Callable[[], T]) -> T:
        """Call `work`, with batches halved until it fits into the device's memory."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # outside of the handler: the error holds on to the frames, and they to the memory
            if self.batch_size == 1:
                raise TeacherError(
                    f"the teacher does not fit into the memory of {self._device} with a single "
                    f"view ({reason}). Free the device, or use a smaller precision or teacher."
                )
            self.batch_size = size = (self.batch_size + 1) // 2
            if self._on_gpu:
                torch.cuda.empty_cache()
            log.warning(
                f"out of memory on {self._device}: batches of {size} views from now on. Pass "
                f"batch_size={size} to begin with them."
            )
