"""Mixed pictures to the logits of the teacher, on its device.

Each network gets the pictures normalised its own way. The logits of a head are converted to fp32
before anything is computed of them: classes are regrouped by the class map, and several teachers
become the logarithm of their weighted mean of probabilities, which is the logits of a network that
predicts this mean: every temperature, tail and top-k that follows is exact.

Shapes: B views, S pixels a side, C classes.
"""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache_tools.errors import UsageError
from cache_tools.render import mixing
from cache_tools.targets import dense
from pipeline.recipe import MemoryFormat
from pipeline.teacher.class_map import Regroup
from pipeline.teacher.teacher import Teacher

log = logging.getLogger("kdcache")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Execution:
    """Execution of a network; no part of a cache's identity, but recorded with its parts."""

    memory_format: MemoryFormat = "auto"
    """Order of the pixels in memory."""
    compile: bool = False
    """Use of torch.compile."""

    def choose(self, model: nn.Module) -> str:
        """Choose the memory format of a network: channels_last where there are convolutions.

        Measured on two CPU cores, fp32, views per CPU-second against contiguous memory: ResNet-50
        1.19×, EfficientNet-B0 1.5×, ConvNeXt-T 1.03×, timm's test_resnet at 32 px 3.6×.
        """
        if self.memory_format != "auto":
            return self.memory_format
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        return "channels_last" if convolutions > 1 else "contiguous"


DEFAULT = Execution()


class Logits:
    """A teacher on a device, from mixed pictures to logits."""

    def __init__(
        self, teacher: Teacher, device: torch.device, execution: Execution = DEFAULT
    ) -> None:
        """Move the networks to the device."""
        members = teacher.members or (teacher,)
        self._networks = [_TeacherNetwork(member, device, execution) for member in members]
        shares = [member.weight for member in teacher.spec.members]
        self._log_weights = [math.log(share) for share in shares]
        precision = teacher.spec.precision
        formats = "/".join(dict.fromkeys(network.memory_format for network in self._networks))
        compiled = "compiled" if execution.compile else "not compiled"
        self.how = f"{precision}, {formats}, {compiled}"
        """Execution of the networks, for the commit records."""
        reason = "the fastest layout for convolutions, where there are some"
        reason = reason if execution.memory_format == "auto" else "recipe: memory_format"
        log.info(
            f"forward pass: {precision} (recipe: precision), {formats} ({reason}), "
            f"{compiled} (recipe: compile)"
        )
        if execution.compile:
            log.info("the first batches wait for torch.compile: a minute or more")

    def __call__(self, x_B3SS: Tensor) -> Tensor:
        """Logits [B, C] in fp32 of pictures with values 0..255."""
        if not self._log_weights:
            return self._networks[0](x_B3SS)
        total = None
        for network, log_weight in zip(self._networks, self._log_weights, strict=True):
            log_p_BC = network(x_B3SS).log_softmax(1) + log_weight
            total = log_p_BC if total is None else torch.logaddexp(total, log_p_BC)
        assert total is not None
        return total


class _TeacherNetwork:
    """One network with its own normalisation and classes."""

    def __init__(self, teacher: Teacher, device: torch.device, execution: Execution) -> None:
        self.memory_format = execution.choose(teacher.model)
        self._device, self._dtype = device, DTYPES[teacher.spec.precision]
        model = teacher.model.to(device, memory_format=FORMATS[self.memory_format])  # type: ignore[call-overload]
        self._model: Callable[[Tensor], Tensor] = (
            torch.compile(model) if execution.compile else model
        )
        self._compiled = execution.compile
        mapped = teacher.class_map
        self._regroup = Regroup(mapped).to(device) if mapped else nn.Identity()
        scale, offset = mixing.normalisation(teacher.spec.mean, teacher.spec.std)
        self._scale = torch.from_numpy(scale).to(device)[:, None, None]
        self._offset = torch.from_numpy(offset).to(device)[:, None, None]
        self._name, self._unchecked = teacher.spec.name, True

    def __call__(self, x_B3SS: Tensor) -> Tensor:
        x_B3SS = x_B3SS * self._scale + self._offset
        x_B3SS = x_B3SS.contiguous(memory_format=FORMATS[self.memory_format])
        plain = self._dtype is torch.float32
        with nullcontext() if plain else torch.autocast(self._device.type, self._dtype):
            logits_BH = self._run(x_B3SS)
        if self._unchecked:
            self._unchecked = False
            values_BH = logits_BH.detach().float().cpu().numpy()
            dense.refuse_probabilities(f"the teacher {self._name}", values_BH)
        regrouped: Tensor = self._regroup(logits_BH.float())
        return regrouped

    def _run(self, x_B3SS: Tensor) -> Tensor:
        if not self._compiled:
            return self._model(x_B3SS)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._model(x_B3SS)
        except (TorchDynamoException, ImportError, FileNotFoundError) as error:
            raise UsageError(
                f"torch.compile fails for this teacher ({type(error).__name__}: "
                f"{str(error).strip().partition(chr(10))[0]}). Pass compile=false."
            ) from None
