"""timm's interface for networks of other libraries: logits, `num_classes`, `pretrained_cfg`.

The module itself is kept, and its output passes a hook: names and digest of its weights are those
that its library has.

Shapes: B pictures, C classes, S pixels a side.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.runtime.device_memory import is_out_of_memory

_DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}
"""timm's, for keys that a library or a function leaves out."""


def adapt(
    model: nn.Module,
    name: str,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Give a network of another library timm's interface.

    Args:
        model: The network, changed in place.
        name: Its architecture, with the prefix of its source.
        config: Its preprocessing, in timm's keys.
        options: Arguments that create it again, stored with its weights.
        extra: Further content of its config.json.
    """
    leaves = [
        (path, module.weight.shape[0])
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and not any(module.children())
    ]
    head, classes = leaves[-1] if leaves else ("", 0)
    ours: Any = model
    ours.num_classes, ours.num_features = classes, 0  # the latter is read when it is saved
    known = _DEFAULTS | _checked({**_DEFAULTS, **config}, name)
    ours.pretrained_cfg = {**config, **known, "architecture": name, "classifier": head}
    ours._model_args, ours.extra_config = dict(options), dict(extra or {})
    model.register_forward_hook(_output)
    return model


def _checked(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Convert the preprocessing to timm's types; UsageError for anything else."""
    try:
        sizes, mean, std = (tuple(config[key]) for key in ("input_size", "mean", "std"))
        channels, height, width = map(int, sizes)
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("mean and std are three numbers each")
        return {
            "input_size": (channels, height, width),
            "mean": tuple(map(float, mean)),
            "std": tuple(map(float, std)),
            "interpolation": str(config["interpolation"]),
            "crop_pct": float(config["crop_pct"]),
        }
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the preprocessing of {name} is invalid ({error}). Expected are timm's values: "
            "input_size (3, S, S), mean and std of three numbers each, crop_pct, interpolation."
        ) from None


def measure(model: nn.Module) -> nn.Module:
    """Run a network once to find the length of its logits, and whether it takes one size only.

    Raises:
        UsageError: It does not take its pictures, or returns no logits.
    """
    ours: Any = model.cpu().eval()
    config = ours.pretrained_cfg
    name, size = config["architecture"], int(config["input_size"][-1])
    try:
        ours.num_classes = _probe(model, size).shape[1]
    except UsageError:
        raise
    except Exception as error:  # of whatever code the network is
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"the network {name} does not take RGB pictures of {size} × {size} px in fp32 "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0][:200]}). Choose another "
            "network, or correct the input_size of its configuration."
        ) from None
    try:
        _probe(model, 2 * size)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        config["fixed_input_size"] = True
    return model


def check_config(config: Any, where: Path) -> None:
    """Raise TeacherError if the `pretrained_cfg` in a config.json has what timm passes over.

    Keys that are absent or null are timm's defaults; others must be of their kind, and finite.
    """
    found = config.get("pretrained_cfg") if isinstance(config, dict) else None
    for key, (expected, holds) in _PREPROCESSING.items():
        value = found.get(key) if isinstance(found, dict) else None
        if value is not None and not holds(value):
            raise TeacherError(
                f"{where}: pretrained_cfg.{key} is {value!r}, expected {expected}. Correct it, or "
                "remove it for the default of the network."
            )


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and least < value < math.inf


def _are_numbers(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, list) and value != [] and all(_is_number(v, least) for v in value)


def _is_size(value: Any) -> bool:
    return _are_numbers(value, 0) and len(value) == 3 and all(type(one) is int for one in value)


_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_MODES = ("center", "squash", "border")
_PREPROCESSING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("input_size", "test_input_size"), ("[3, height, width]", _is_size)),
    **dict.fromkeys(
        ("crop_pct", "test_crop_pct"), ("a number above 0", lambda value: _is_number(value, 0))
    ),
    "mean": ("a number for each channel", _are_numbers),
    "std": ("a number above 0 for each channel", lambda value: _are_numbers(value, 0)),
    "interpolation": (f"one of {', '.join(_FILTERS)}", lambda value: value in _FILTERS),
    "crop_mode": (f"one of {', '.join(_MODES)}", lambda value: value in _MODES),
    "fixed_input_size": ("true or false", lambda value: type(value) is bool),
}
"""Key of timm's `pretrained_cfg` → what it must be, in words, and the check."""


def _probe(model: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        logits: Any = model(torch.zeros(2, 3, size, size))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise UsageError(
            f"the network {model.pretrained_cfg['architecture']} returns {_described(logits)} for "  # type: ignore[index]
            "2 pictures, expected logits [2, C]: a tensor, an object or dictionary with `logits`, "
            "or the logits of two heads. Wrap it in a module that returns its logits."
        )
    return logits


def _output(model: nn.Module, inputs: Any, output: Any) -> Any:
    """Take the logits of an output; of two heads the mean, as DeiT's authors evaluate."""
    found = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", None) if found is None else found
    if found is not None:
        return found
    if isinstance(output, tuple | list) and output and all(isinstance(t, Tensor) for t in output):
        if len(output) == 1:
            return output[0]
        if len(output) == 2 and output[0].shape == output[1].shape:
            return (output[0] + output[1]) / 2
    return output


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(map(_described, value[:4])) or 'nothing'}"
    return f"a {type(value).__name__}"
