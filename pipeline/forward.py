"""From rendered views to sparse targets, on the teacher's device.

Normalisation, mixup, the forward pass and the choice of classes happen where the network lies;
only a few numbers per view come back. Logits are taken to fp32 before anything is computed of them.

Shapes: B views, S pixels a side, C classes, K kept classes, T temperatures, P labels of a view.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools import mixing
from cache_tools.spec import TargetSpec
from cache_tools.views import Mix
from pipeline.teacher import Teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else the first GPU, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


class Forward:
    """A teacher on a device, ready to be asked."""

    def __init__(self, teacher: Teacher, targets: TargetSpec, device: torch.device) -> None:
        self.device = device
        self.targets = targets
        self._dtype = DTYPES[teacher.spec.precision]
        memory = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._model = teacher.model.to(device, memory_format=memory)  # type: ignore[call-overload]
        scale, offset = mixing.normalisation(teacher.spec.mean, teacher.spec.std)
        self._scale = torch.from_numpy(scale).to(device)[:, None, None]
        self._offset = torch.from_numpy(offset).to(device)[:, None, None]

    @torch.inference_mode()
    def __call__(
        self,
        pixels: NDArray[np.uint8],
        partner: NDArray[np.uint8] | None,
        mix: Mix | None,
        label_BP: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, ...]:
        """Ask the teacher about B views.

        Args:
            pixels: [B, S, S, 3] RGB.
            partner: The mixing partners' pixels, or None.
            mix: How the B views are mixed with them, or None.
            label_BP: True classes whose probability is stored; -1 = none.

        Returns:
            The fields of `codec.Sparse`, on the device.
        """
        x = self._upload(pixels)
        if partner is not None and mix is not None:
            lam = torch.from_numpy(mix.lam_B.astype(np.float32)).to(self.device)
            cut = torch.from_numpy(mix.cut_B4).to(self.device)
            side = torch.arange(pixels.shape[1], device=self.device)
            x = mixing.mix(x, self._upload(partner), lam, cut, side)
        x = x * self._scale + self._offset
        if self.device.type == "cuda":
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits = self._model(x)
        labels = None if label_BP is None else torch.from_numpy(label_BP).to(self.device)
        return sparsify(logits.float(), self.targets, labels)

    def _upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.permute(0, 3, 1, 2).float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)


def sparsify(
    logits_BC: Tensor, spec: TargetSpec, label_BP: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Choose the classes to keep; the device's version of `codec.sparsify`.

    NaN and Inf logits come out as NaN tails, so that one look at the result finds them.
    """
    probability_BC = logits_BC.softmax(1)
    p, index = probability_BC.topk(spec.k_max, dim=1)
    slots = torch.arange(spec.k_max, device=p.device)
    keep = (p > spec.tau) | (slots < spec.k_min)
    kept_BC = torch.zeros_like(logits_BC, dtype=torch.bool).scatter_(1, index, keep)
    tails = [(logits_BC / t).softmax(1).masked_fill(kept_BC, 0.0).sum(1) for t in spec.temperatures]
    tail = torch.stack(tails, dim=1) + 0.0 * logits_BC.sum(1, keepdim=True)
    rest_BC = probability_BC.masked_fill(kept_BC, 0.0)
    square_BQ = rest_BC.square().sum(1, keepdim=True)[:, : int(spec.tail_square)]
    if label_BP is None or not spec.true_class:
        label_BP = index.new_zeros((len(index), 0))
    true_BP = rest_BC.gather(1, label_BP.clamp(min=0)).masked_fill(label_BP < 0, 0.0)
    return index.masked_fill(~keep, -1), p.masked_fill(~keep, 0.0), tail, true_BP, square_BQ
