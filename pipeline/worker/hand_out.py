"""Stage 1 without a network: it hands out the pictures of the views and takes targets in return.

Shapes: B views of a batch, S pixels a side, P the classes of a sample and of its partner.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.render import mixing
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.views.draw import MixParams
from pipeline.recipe import MemoryFormat
from pipeline.teacher.forward import Pixels, TeacherInput
from pipeline.teacher.logits import FORMATS
from pipeline.worker.predict import Predictor
from pipeline.worker.stage1 import Stage1


class Pictures(TeacherInput):
    """Pictures of the views as a teacher takes them."""

    def __init__(self, teacher: TeacherSpec, device: torch.device, layout: MemoryFormat) -> None:
        super().__init__(device, "in the caller's program")
        scale, offset = mixing.normalisation(teacher.mean, teacher.std)
        self._scale = torch.from_numpy(scale).to(device)[:, None, None]
        self._offset = torch.from_numpy(offset).to(device)[:, None, None]
        self._format = FORMATS["channels_last" if layout == "auto" else layout]

    def __call__(
        self,
        pixels: Pixels,
        partner: Pixels | None,
        mix: MixParams | None,
        label_BP: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, ...]:
        """Mix and normalise views: [B, 3, S, S] fp32 on the device."""
        x_B3SS = self.mixed(pixels, partner, mix) * self._scale + self._offset
        return (x_B3SS.contiguous(memory_format=self._format),)


class _Unpredicted(Predictor):
    """Predictor that leaves the pictures where the teacher is."""

    def _to_host(self, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], None]:
        return outputs, None


class HandingOut(Stage1):
    """Stage 1 that hands pictures out and takes what a teacher outside makes of them."""

    predictor = _Unpredicted
