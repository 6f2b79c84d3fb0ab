"""Networks by name as plug-ins: every teacher of stage 1, without the wrapping.

Offered by the entry point `network` of `kdcache.teachers`; `kdcache eval` loads students and
teachers through it. A network is timm's: called with normalised pictures [B, 3, S, S] it gives
logits [B, C], and `pretrained_cfg` has its preprocessing (mean, std, input_size, crop_pct).
"""

import timm
from torch import nn

from pipeline.teacher import create


def network(name: str) -> nn.Module:
    """Load a network with its weights, in evaluation mode, on the CPU.

    Args:
        name: As of `kdcache cache --teacher`: a timm name, "hf-hub:user/model", a folder with
            `config.json` and `model.safetensors`, a file of weights beside its `config.json`, or
            "lite0-imagenet".

    Raises:
        UsageError: There is no such network.
        TeacherError: Its weights are not available.
    """
    return create.create(name)[1].eval().requires_grad_(False)


def license_of(name: str) -> str:
    """Licence of a network's published weights according to timm; "" if unknown.

    Args:
        name: A timm name with or without its tag, or "hf-hub:timm/NAME".
    """
    known = timm.get_pretrained_cfg(name.removeprefix("hf-hub:timm/"))
    return str(known.license or "") if known is not None else ""
