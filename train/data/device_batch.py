"""Upload, mixing and normalisation: from uint8 pixels on the host to a network's input.

A batch is moved and mixed once for all students of a cohort, and for a teacher in the loop;
normalisation and autocast are a network's own. Copies to a GPU have a stream of their own: a batch
is uploaded while the GPU computes the one before.

Shapes: B views of a batch, S pixels a side, K kept classes, T temperatures, P labels of a view.
"""

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.render import mixing
from cache_tools.runtime.plugins import Plugin
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.teacher import Precision
from cache_tools.store.cache import Cache
from cache_tools.views.draw import LAMBDA_SCALE, MixParams
from train.data.buffer_pool import page_locked
from train.data.loader import Batch
from train.loss.targets import SoftTargets

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of red, green and blue, of 0..1."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TeacherFn = Callable[..., tuple[Tensor, ...]]
"""Pixels and partners' pixels on the device, [B, S, S, 3] uint8, mixing and labels of B views →
fields of `codec.SparseTargets`."""
OnlineFn = Callable[..., SoftTargets]
"""A batch and, as `pictures`, its pictures on the device → targets of a teacher in the loop."""
ONLINE: Plugin[Callable[[Cache, Sequence[str], torch.device], TeacherFn]] = Plugin(
    "kdcache.teachers", "online", "run a teacher in the loop"
)


def online_targets(
    teacher_fn: TeacherFn, batch: Batch, spec: CacheSpec, pictures: Tensor | None = None
) -> SoftTargets:
    """Run the teacher on a batch and keep of its logits what a cache would store.

    `pictures` are those of the batch on the teacher's device; None: on the CPU. The teacher gets
    no array of the loader's pool: a second copy of it to a GPU could come after it is reused.
    """
    pictures = torch.from_numpy(batch.pictures) if pictures is None else pictures
    partner = None
    if batch.partner_at_B is not None:
        partner = pictures[to_device(batch.partner_at_B, pictures.device)]
    own = np.arange(len(batch.lam_B))
    mix = MixParams(own, batch.lam_B.astype(np.int32), batch.cut_B4)
    labels = np.stack([batch.label_B, batch.partner_label_B], axis=1)[:, : spec.num_labels]
    outputs = teacher_fn(pictures[: len(batch)], partner, mix, labels)
    # autograd keeps no inference tensors
    index, p, tail, true, square = (t.clone() for t in outputs)
    device = index.device
    return SoftTargets(
        index=index.clamp(min=0),
        probability=p,
        tail=tail,
        temperatures=spec.targets.temperatures,
        num_classes=batch.num_classes,
        label=to_device(batch.label_B, device),
        partner_label=to_device(batch.partner_label_B, device),
        lam=to_device(batch.lam_B, device) / LAMBDA_SCALE,
        true=true if true.numel() else None,
        square=square[:, 0] if square.numel() else None,
    )


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the device, moved and mixed once, however many students train on it."""

    pixels: Tensor
    """[B, 3, S, S] fp32 of the mixed views, 0..255."""
    targets: SoftTargets
    """Targets and labels of these views."""
    online: SoftTargets | None = None
    """Targets of the teacher in the loop, where there is one."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device, online: OnlineFn | None = None) -> Self:
        """Move a batch to the device, mix it, and run a teacher in the loop on it."""
        uploaded, lam = to_device(batch.pictures, device), to_device(batch.lam_B, device)
        online_soft = None if online is None else online(batch, pictures=uploaded)
        pictures = uploaded.permute(0, 3, 1, 2).float()
        pixels = pictures[: len(batch)]
        if batch.partner_at_B is not None:
            partner = pictures[to_device(batch.partner_at_B, device)]
            cut = to_device(batch.cut_B4, device)
            side = torch.arange(pixels.shape[-1], device=pixels.device)
            outside = None if batch.outside_B is None else to_device(batch.outside_B, device)
            pixels = mixing.mix(pixels, partner, lam, cut, side, outside)
        own, other = (to_device(y, device) for y in (batch.label_B, batch.partner_label_B))
        labels, move = (own, other, lam / LAMBDA_SCALE), functools.partial(to_device, device=device)
        of_batch = batch.targets, batch.temperatures, batch.num_classes, labels
        targets = SoftTargets.of(*of_batch, move)
        return cls(pixels, targets, online_soft)


_read_by_gpu: deque[tuple[torch.cuda.Event, NDArray[Any]]] = deque()
"""Page-locked arrays whose copies are under way: the pool reuses an array without references
(buffer_pool.py)."""
_COPIES = threading.Lock()
"""Held while they change."""


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device; work that is queued there does not delay the copy."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    if not tensor.is_pinned():
        tensor = page_locked(tuple(tensor.shape), tensor.dtype).copy_(tensor)
    copies, event = _copy_stream(device), torch.cuda.Event()
    compute = torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        there = tensor.to(device, non_blocking=True)
        event.record(copies)
    compute.wait_event(event)
    there.record_stream(compute)
    with _COPIES:  # of two threads the second would drop a copy that has not been queried
        _read_by_gpu.append((event, array))
        while _read_by_gpu and _read_by_gpu[0][0].query():
            _read_by_gpu.popleft()
    return there


def upload(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Upload [B, S, S, 3] uint8 as [B, 3, S, S] fp32 0..255."""
    return to_device(pixels, device).permute(0, 3, 1, 2).float()


class InputTransform:
    """Input of one network: device, normalisation, autocast."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.device = device
        self.precision = precision
        self.normalisation: Normalisation = (mean, std)
        self._dtype = DTYPES[precision]
        scale, offset = mixing.normalisation(mean, std)
        self._scale = torch.from_numpy(scale).to(device)[:, None, None]
        self._offset = torch.from_numpy(offset).to(device)[:, None, None]

    def upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Upload [B, S, S, 3] uint8 as [B, 3, S, S] fp32 0..255."""
        return upload(pixels, self.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels 0..255 with the network's mean and deviation."""
        x = pixels * self._scale + self._offset
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x

    def batch(self, batch: Batch) -> tuple[Tensor, SoftTargets]:
        """Move, mix and normalise a batch; return the network's input and its targets."""
        moved = DeviceBatch.of(batch, self.device)
        return self.normalise(moved.pixels), moved.targets

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Enter autocast of the recipe's precision; a null context for fp32."""
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)
