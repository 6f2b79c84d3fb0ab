"""Networks of timm, by its names, from timm's weights or the Hub."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.runtime.device_memory import is_out_of_memory

LITE = "lite0-imagenet"
"""Teacher of the extra [lite] (`pipeline.teacher.lite`)."""
_PREFIXES = ("torchvision", "transformers", "python", "hf-hub", "local-dir")
"""Prefixes of names, ours and timm's."""


def untrained(
    name: str, num_classes: int, options: Mapping[str, Any], config: Mapping[str, Any]
) -> nn.Module:
    """Create a network (`registry.Source`); a tag decides mean and deviation alone."""
    if "/" not in name:
        refuse_unknown(name.partition(".")[0])
    given = dict(options) | ({"num_classes": num_classes} if num_classes else {})
    overlay = dict(config) or None
    model: nn.Module = timm.create_model(
        name, pretrained=False, pretrained_cfg_overlay=overlay, **given
    )
    return model


def pretrained(name: str) -> tuple[str, nn.Module]:
    """Create a network with its weights (`registry.Source`)."""
    if "/" not in name:
        refuse_unknown(name, _others(name))
    try:
        return name, timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds, from sockets to JSON
        if is_out_of_memory(error):
            raise
        raise TeacherError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: "
            f"{str(error).partition('.')[0]}). Check the network, or pass a "
            f"folder with model.safetensors, or --teacher {LITE}, or --random-weights to "
            "measure speed."
        ) from None


def _others(name: str) -> list[str]:
    """List names of networks of other sources that a misspelt `name` may mean."""
    prefix, colon, rest = name.partition(":")
    near = difflib.get_close_matches(prefix, _PREFIXES, n=1) if colon else []
    return [LITE, *(f"{one}:{rest}" for one in near)]


def refuse_unknown(name: str, others: Sequence[str] = ()) -> None:
    """Raise UsageError if timm has no network of this name, or no weights of this tag.

    Args:
        name: Architecture, and a tag after a dot.
        others: Names of other sources, to be suggested like those of timm.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, [*others, *timm.list_models()], n=3)
        near = near or difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise UsageError(
            f"timm {timm.__version__} has no network {name!r}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "See timm.list_models() for all."
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise UsageError(
            f"timm {timm.__version__} has no weights {tag!r} of {architecture}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + f"See timm.list_pretrained('{architecture}*') for all."
        )
