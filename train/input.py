"""From uint8 pixels on the host to a network's input on its device."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools import mixing
from cache_tools.spec import CacheSpec, Precision
from cache_tools.views import LAM_ONE, Mix
from train.replay import Batch
from train.targets import SoftTargets
from train.task import Supervision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Ask = Callable[..., tuple[Tensor, ...]]
"""Pixels, partners' pixels, mixing and labels of B views → fields of `codec.Sparse`."""


def said_now(ask: Ask, batch: Batch, spec: CacheSpec) -> SoftTargets:
    """What a teacher in the loop says of a batch, kept as the cache would keep it."""
    own = np.arange(len(batch.lam_B))
    mix = Mix(own, batch.lam_B.astype(np.int32), batch.cut_B4)
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


class Input:
    """How pictures and targets enter a network: device, normalisation, autocast."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.device = device
        self._dtype = DTYPES[precision]
        scale, offset = mixing.normalisation(mean, std)
        self._scale = torch.from_numpy(scale).to(device)[:, None, None]
        self._offset = torch.from_numpy(offset).to(device)[:, None, None]

    def upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        """[B, S, S, 3] uint8 → [B, 3, S, S] fp32 0..255 on the device."""
        return self._to_device(pixels).permute(0, 3, 1, 2).float()

    def normalise(self, pixels: Tensor) -> Tensor:
        """0..255 → the network's normalisation."""
        x = pixels * self._scale + self._offset
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x

    def batch(self, batch: Batch, temperatures: tuple[float, ...]) -> tuple[Tensor, Supervision]:
        """A batch's mixed and normalised pictures, and what to learn from them."""
        pixels, lam = self.upload(batch.pixels), self._to_device(batch.lam_B)
        if batch.partner is not None:
            cut = self._to_device(batch.cut_B4)
            side = torch.arange(pixels.shape[-1], device=self.device)
            pixels = mixing.mix(pixels, self.upload(batch.partner), lam, cut, side)
        targets = batch.targets
        soft = SoftTargets(
            self._to_device(targets.index_BK).long(),
            self._to_device(targets.probability_BK),
            self._to_device(targets.tail_BT),
            temperatures,
            self._to_device(targets.true_BP) if targets.true_BP.size else None,
            self._to_device(targets.square_BQ[:, 0]) if targets.square_BQ.size else None,
        )
        labels = self._to_device(batch.label_B), self._to_device(batch.partner_label_B)
        return self.normalise(pixels), Supervision(soft, *labels, lam / LAM_ONE)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast of the recipe's precision; nothing for fp32."""
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
