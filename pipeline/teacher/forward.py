"""Rendered views to sparse targets, on the teacher's device.

Normalisation, mixup, the forward pass and the choice of classes happen on the network's device;
only a few numbers per view come back. Logits are fp32 before anything is computed of them.

Shapes: B views, S pixels a side, P labels of a view.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.render import mixing
from cache_tools.spec.targets import TargetSpec
from cache_tools.views.draw import LAMBDA_SCALE, MixParams
from pipeline.teacher import page_locked
from pipeline.teacher.logits import DEFAULT, Execution, Logits
from pipeline.teacher.sparsify import sparsify
from pipeline.teacher.teacher import Teacher

Pixels = NDArray[np.uint8] | Tensor


class TeacherInput:
    """Views on the teacher's device, uploaded and mixed."""

    def __init__(self, device: torch.device, how: str) -> None:
        self.device = device
        self.how = how
        """Execution of the teacher, for the commit records."""

    def __call__(
        self,
        pixels: Pixels,
        partner: Pixels | None,
        mix: MixParams | None,
        label_BP: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, ...]:
        """Make tensors of B views on the device; arguments as of `Forward`."""
        raise NotImplementedError

    def mixed(self, pixels: Pixels, partner: Pixels | None, mix: MixParams | None) -> Tensor:
        """Mix [B, S, S, 3] bytes with those of their partners: [B, 3, S, S] fp32, 0..255."""
        x = self._move(pixels).float()
        if partner is not None and mix is not None and self.device.type == "cpu":
            mix_in_place(x, self._move(partner), mix)
        elif partner is not None and mix is not None:
            lam, cut = self._upload(mix.lam_B.astype(np.float32)), self._upload(mix.cut_B4)
            side = torch.arange(x.shape[-1], device=self.device)
            x = mixing.mix(x, self._move(partner).float(), lam, cut, side)
        return x

    def _move(self, pixels: Pixels) -> Tensor:
        """[B, 3, S, S] on the device, still bytes."""
        tensor = torch.as_tensor(pixels)
        there = tensor if tensor.is_cuda else page_locked.upload(tensor, self.device)
        return there.permute(0, 3, 1, 2)

    def _upload(self, array: NDArray[Any]) -> Tensor:
        return page_locked.upload(torch.from_numpy(array), self.device)


class Forward(TeacherInput):
    """A teacher on a device, as a function from views to sparse targets."""

    def __init__(
        self,
        teacher: Teacher,
        targets: TargetSpec,
        device: torch.device,
        execution: Execution = DEFAULT,
    ) -> None:
        self.targets = targets
        self._logits = Logits(teacher, device, execution)
        super().__init__(device, self._logits.how)

    @torch.inference_mode()
    def __call__(
        self,
        pixels: Pixels,
        partner: Pixels | None,
        mix: MixParams | None,
        label_BP: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, ...]:
        """Predict the targets of B views.

        Args:
            pixels: [B, S, S, 3] RGB, on the host or the device.
            partner: The mixing partners' pixels, or None.
            mix: How the B views are mixed with them, or None.
            label_BP: True classes whose probability is stored; -1 = none.

        Returns:
            The fields of `codec.SparseTargets`, on the device.
        """
        logits = self.logits(pixels, partner, mix)
        labels = None if label_BP is None else self._upload(label_BP)
        return sparsify(logits, self.targets, labels)

    @torch.inference_mode()
    def logits(self, pixels: Pixels, partner: Pixels | None, mix: MixParams | None) -> Tensor:
        """Predict the logits [B, C] of B views, in fp32; arguments as of a call."""
        return self._logits(self.mixed(pixels, partner, mix))


def mix_in_place(x_B3SS: Tensor, partner_B3SS: Tensor, mix: MixParams) -> None:
    """`mixing.mix` for a CPU: view by view, so that each stays in a core's cache.

    Bit for bit the same, since every sum and product is an integer below 2^24 there and here. At
    224 px a view costs 0.3 ms of a core instead of 2 to 4, which were 2 % of a ResNet-50.

    x (fp32 values 0..255) is overwritten; the partners' pixels are bytes.
    """
    for x, partner, lam, cut in zip(x_B3SS, partner_B3SS, mix.lam_B, mix.cut_B4, strict=True):
        top, left, height, width = cut.tolist()
        if height:
            box = slice(None), slice(top, top + height), slice(left, left + width)
            x[box] = partner[box]
        elif lam < LAMBDA_SCALE:
            other = partner.float()
            x.sub_(other).mul_(int(lam)).add_(other, alpha=LAMBDA_SCALE).div_(LAMBDA_SCALE)
