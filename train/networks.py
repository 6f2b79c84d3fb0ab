"""Networks by name, of whatever library the plug-in `network` of stage 1 finds, and their folders.

A folder has config.json and model.safetensors as timm saves them; `architecture` has the name of
the network's source, and `model_args` what creates it again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from cache_tools.errors import UsageError
from cache_tools.runtime.plugins import Plugin

NETWORK: Plugin[Callable[..., nn.Module]] = Plugin("kdcache.teachers", "network", "load a network")

LIBRARIES = ("torchvision", "transformers", "python")
"""Prefixes of names that are not timm's (`pipeline.networks.registry`)."""


def save(
    model: nn.Module,
    folder: Path,
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to a folder; `config` is added to its config.json.

    `args` create a network of timm again; one of another library has its own.
    """
    ours: Any = model
    save_for_hf(
        model,
        str(folder),
        model_config={**saved_config(model), **(config or {})},
        model_args=dict(ours._model_args if is_foreign(model) else args or {}),
        safe_serialization=True,
    )


def saved_config(model: nn.Module) -> dict[str, Any]:
    """Content of config.json by which the network's own library opens the folder."""
    return dict(getattr(model, "extra_config", {}))


def architecture(model: nn.Module) -> str:
    """Name of a network's architecture, with the prefix of its library unless that is timm."""
    config: Any = getattr(model, "pretrained_cfg", {})
    return str(config.get("architecture", ""))


def is_foreign(model: nn.Module) -> bool:
    """Return True for a network of another library than timm."""
    return ":" in architecture(model)


def check_savable(model: nn.Module, name: str) -> None:
    """Raise UsageError if safetensors cannot store the state of a network."""
    state = model.state_dict()
    values = [value for value in state.values() if getattr(value, "numel", lambda: 1)()]
    try:
        places = {value.untyped_storage().data_ptr() for value in values}
    except AttributeError:
        raise UsageError(f"the state of {name} has other things than tensors.") from None
    if len(places) < len(values) and not any(value.is_meta for value in values):
        raise UsageError(
            f"tensors of {name} share their memory (tied weights), which safetensors cannot store. "
            "Choose a network without."
        )
