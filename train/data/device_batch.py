"""From uint8 pixels on the host to a network's input on its device."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.render import mixing
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.teacher import Precision
from cache_tools.views.draw import LAMBDA_SCALE, MixParams
from train.data.loader import Batch
from train.loss.targets import SoftTargets
from train.loss.task import Supervision

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of red, green and blue, of 0..1."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Ask = Callable[..., tuple[Tensor, ...]]
"""Pixels, partners' pixels, mixing and labels of B views → fields of `codec.SparseTargets`."""


def online_targets(ask: Ask, batch: Batch, spec: CacheSpec) -> SoftTargets:
    """What a teacher in the loop says of a batch, kept as the cache would keep it."""
    own = np.arange(len(batch.lam_B))
    mix = MixParams(own, batch.lam_B.astype(np.int32), batch.cut_B4)
    labels = np.stack([batch.label_B, batch.partner_label_B], axis=1)[:, : spec.num_labels]
    said = ask(batch.pixels, batch.partner, mix, labels)
    index, p, tail, true, square = (t.clone() for t in said)  # autograd keeps no inference tensors
    return SoftTargets(
        index.clamp(min=0),
        p,
        tail,
        spec.targets.temperatures,
        true if true.numel() else None,
        square[:, 0] if square.numel() else None,
    )


class DeviceBatch:
    """A batch on the device: moved and mixed once, however many students learn from it."""

    def __init__(self, batch: Batch, temperatures: tuple[float, ...], device: torch.device) -> None:
        """Move a batch; `temperatures` are those of its targets."""
        pictures, lam = upload(batch.pictures, device), to_device(batch.lam_B, device)
        pixels = pictures[: len(batch)]
        if batch.partner_at_B is not None:
            partner = pictures[to_device(batch.partner_at_B, device)]
            cut = to_device(batch.cut_B4, device)
            side = torch.arange(pixels.shape[-1], device=device)
            outside = None if batch.outside_B is None else to_device(batch.outside_B, device)
            pixels = mixing.mix(pixels, partner, lam, cut, side, outside)
        targets = batch.targets
        soft = SoftTargets(
            to_device(targets.index_BK, device).long(),
            to_device(targets.probability_BK, device),
            to_device(targets.tail_BT, device),
            temperatures,
            to_device(targets.true_BP, device) if targets.true_BP.size else None,
            to_device(targets.square_BQ[:, 0], device) if targets.square_BQ.size else None,
        )
        labels = to_device(batch.label_B, device), to_device(batch.partner_label_B, device)
        self._pixels = pixels
        self._normalised: dict[Normalisation, Tensor] = {}
        self.supervision = Supervision(soft, *labels, lam / LAMBDA_SCALE)
        """What is to be learned from the batch."""

    def seen_by(self, network: "InputTransform") -> Tensor:
        """The mixed pictures as a network wants them; those of equal normalisation share them."""
        if network.normalisation not in self._normalised:
            self._normalised[network.normalisation] = network.normalise(self._pixels)
        return self._normalised[network.normalisation]


_read_by_gpu: deque[tuple[torch.cuda.Event, NDArray[Any]]] = deque()
"""Page-locked arrays and when their copies are done: their memory is used again once nobody holds
them (memory.py)."""


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    if not tensor.is_pinned():
        return tensor.pin_memory().to(device, non_blocking=True)
    there, event = tensor.to(device, non_blocking=True), torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    _read_by_gpu.append((event, array))
    while _read_by_gpu and _read_by_gpu[0][0].query():
        _read_by_gpu.popleft()
    return there


def upload(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """[B, S, S, 3] uint8 → [B, 3, S, S] fp32 0..255 on the device."""
    return to_device(pixels, device).permute(0, 3, 1, 2).float()


class InputTransform:
    """How pictures and targets enter a network: device, normalisation, autocast."""

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
        """[B, S, S, 3] uint8 → [B, 3, S, S] fp32 0..255 on the device."""
        return upload(pixels, self.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """0..255 → the network's normalisation."""
        x = pixels * self._scale + self._offset
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x

    def batch(self, batch: Batch, temperatures: tuple[float, ...]) -> tuple[Tensor, Supervision]:
        """A batch's mixed and normalised pictures, and what to learn from them."""
        arrived = DeviceBatch(batch, temperatures, self.device)
        return arrived.seen_by(self), arrived.supervision

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast of the recipe's precision; nothing for fp32."""
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)
