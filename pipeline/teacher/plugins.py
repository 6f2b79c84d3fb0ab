"""Networks by name as plug-ins: every teacher of stage 1, without the wrapping, and students.

Offered by the entry point `network` of `kdcache.teachers`; `kdcache eval` loads students and
teachers through it, `kdcache train` creates students. A network is as timm's: called with
normalised pictures [B, 3, S, S] it gives logits [B, C], and `pretrained_cfg` has its preprocessing
(mean, std, input_size, crop_pct).
"""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from pipeline.networks import registry
from pipeline.teacher import create


def network(
    name: str,
    architecture: str = "",
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a network with its weights, in evaluation mode; or create an untrained student.

    Both are on the CPU.

    Args:
        name: As of `kdcache cache --teacher`: a timm name, "hf-hub:user/model", a folder with
            `config.json` and `model.safetensors`, a file of weights beside its `config.json`,
            "lite0-imagenet", or a name of another library (`networks.registry`).
        architecture: Name of the network in a folder or file; needed where it is code.
        num_classes: Classes of a student; None = with its own weights.
        options: Arguments of a student.

    Raises:
        UsageError: There is no such network.
        TeacherError: Its weights are not available.
    """
    if num_classes is not None:
        return registry.untrained(name, num_classes, options)
    return create.create(name, architecture=architecture)[1].eval().requires_grad_(False)


def license_of(name: str) -> str:
    """Licence of a network's published weights according to timm; "" if unknown.

    Args:
        name: A timm name with or without its tag, or "hf-hub:timm/NAME".
    """
    if registry.is_foreign(name):
        return ""
    known = timm.get_pretrained_cfg(name.removeprefix("hf-hub:timm/"))
    return str(known.license or "") if known is not None else ""
