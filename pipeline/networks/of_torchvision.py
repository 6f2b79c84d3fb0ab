"""Networks of torchvision: `resnet50`, or `resnet50:IMAGENET1K_V2` with the weights of its enum.

Preprocessing is that of the weights (`weights.transforms()`), of a network without any that of its
best ones (`DEFAULT`). Downloaded weights are opened with weights_only=True.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from cache_tools.errors import TeacherError, UsageError
from cache_tools.runtime.device_memory import is_out_of_memory
from pipeline.networks import interface

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def untrained(
    name: str, num_classes: int, options: Mapping[str, Any], config: Mapping[str, Any]
) -> nn.Module:
    """Create a network (`registry.Source`); its enum decides mean and deviation alone."""
    architecture, weights = _find(name)
    if wrong := sorted({"weights", "weights_backbone"} & options.keys()):
        raise UsageError(f"torchvision:{name} takes no {wrong[0]} here: name them in init.")
    given = dict(options) | ({"num_classes": num_classes} if num_classes else {})
    if architecture in _WITH_AUXILIARY_HEADS:
        given = {"aux_logits": False, "init_weights": True} | given
    model = get_model(architecture, **given)
    return _adapt(model, architecture, weights, options, config)


def pretrained(name: str) -> tuple[str, nn.Module]:
    """Create a network with the weights of its enum (`registry.Source`)."""
    architecture, weights = _find(name)
    if ":" not in name:
        raise UsageError(
            f"torchvision:{name} names no weights. Append those of torchvision, such as "
            f"torchvision:{name}:{weights.name}, or a file, torchvision:{name}:FILE.safetensors; "
            "or pass --random-weights to measure speed."
        )
    try:
        with _weights_only():
            model = get_model(architecture, weights=weights, progress=False)
    except Exception as error:  # of sockets, of files, of the digest
        if is_out_of_memory(error):
            raise
        raise TeacherError(
            f"the weights {weights.name} of torchvision:{architecture} cannot be downloaded "
            f"({type(error).__name__}: {str(error).partition('. ')[0]}). Check the network, or "
            f"pass their file: torchvision:{architecture}:FILE."
        ) from None
    stored = f"torchvision:{architecture}:{weights.name}"
    return stored, _adapt(model, architecture, weights, {}, {})


def _find(name: str) -> tuple[str, Any]:
    """Find the architecture and the member of its enum of weights, DEFAULT without one."""
    architecture, _, tag = name.partition(":")
    known = list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        raise UsageError(
            f"torchvision {torchvision.__version__} has no network {architecture!r}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "See torchvision.models.list_models(module=torchvision.models) for all."
        )
    enum: Any = get_model_weights(architecture)
    if tag and tag not in enum.__members__:
        near = difflib.get_close_matches(tag, enum.__members__, n=1, cutoff=0.0)
        raise UsageError(
            f"torchvision {torchvision.__version__} has no weights {tag!r} of {architecture}. Did "
            f"you mean {near[0]}? It has: {', '.join(enum.__members__)}; or there is no such file."
        )
    return architecture, enum[tag or "DEFAULT"]


def _adapt(
    model: nn.Module,
    architecture: str,
    weights: Any,
    options: Mapping[str, Any],
    config: Mapping[str, Any],
) -> nn.Module:
    seen = weights.transforms()
    size = getattr(model, "image_size", seen.crop_size[0])  # its own, of a transformer
    own = {
        "input_size": (3, size, size),
        "interpolation": seen.interpolation.value,
        "crop_pct": seen.crop_size[0] / seen.resize_size[0],
        "mean": tuple(seen.mean),
        "std": tuple(seen.std),
    }
    return interface.adapt(model, f"torchvision:{architecture}", {**own, **config}, options)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make torch.load refuse objects of Python in the body, whatever torchvision passes."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE]
        if before is not None:
            os.environ[_SAFE] = before
