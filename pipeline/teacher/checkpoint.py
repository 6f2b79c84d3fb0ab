"""Load a network from a file of weights, `.safetensors` or `.pth`, with or without wrapping.

Checkpoints of training scripts have the weights under a key, beside optimizer and epoch, and under
names with a prefix (`module.` of DDP, `_orig_mod.` of torch.compile, `model.` of Lightning). Those
are taken off; names of a network's authors are turned into timm's by timm's own rules. A file is
opened with weights_only=True: objects that could run code are refused.
"""

import codecs
import logging
import pickle
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from safetensors.torch import load_file
from torch import Tensor, nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.file_contents import check_safetensors, describe_file, parse_json, read_text
from cache_tools.runtime.device_memory import is_out_of_memory
from pipeline.networks import interface, registry

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
log = logging.getLogger("kdcache")
FREE_WEIGHTS = 2**26
"""Weights of a network that is created whatever the bytes of its file."""
PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"})
SUFFIXES = PICKLES | {".safetensors"}
"""Ends of the names of files of weights, in small letters."""
_NUMPY: list[Any] = [
    *((f, f"{m}.{f.__name__}") for f in (scalar, _reconstruct) for m in _MODULES),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    codecs.encode,
]
"""Names in pickles of numpy's numbers and arrays, such as the best accuracy beside the weights;
they are plain data and allowed, as is `argparse.Namespace`, the arguments of training scripts."""
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model", "module")
"""Keys of weights in checkpoints, in timm's order: averaged weights first, as evaluated."""


def load(path: Path, architecture: str = "") -> tuple[str, nn.Module]:
    """Load the weights of a file into a network; also the name of its architecture.

    Args:
        path: A file of one of `SUFFIXES`.
        architecture: Name of the network, whose tag decides mean and deviation; "" = that of
            `config.json` beside the file, unless it is code.

    Raises:
        UsageError: There is no such file or architecture, or no architecture is given.
        TeacherError: The file contains other weights, or more than weights.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}. Pass --teacher with a file of weights.")
    config = _config(path)
    name = architecture or config.get("architecture", "")
    if not name:
        raise UsageError(
            f"the network of the weights in {path} is unknown. Pass --architecture NAME, timm's "
            "name with the tag whose normalisation they need, such as resnet50.a1_in1k, or "
            "torchvision:resnet50."
        )
    if not isinstance(name, str):
        raise TeacherError(f"{path.parent / 'config.json'}: its architecture is {name!r}.")
    if not architecture:
        registry.refuse_code(name, str(path.parent), f"--architecture {name}, or {name}:{path}")
    if architecture not in ("", config.get("architecture")):
        config = {}  # of another network
    found = _state(path)
    model = _create(name, config, path)
    state = _by_timms_names(found, model)
    head: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ""
    end = f"{head if isinstance(head, str) else head[0]}.weight"
    heads = [key for key in state if f".{key}".endswith(f".{end}")]
    if heads and (classes := len(state[min(heads, key=len)])) != model.num_classes:
        model = _create(name, config, path, classes)
    _fill(model, state, path, name)
    return name, interface.measure(model) if registry.is_foreign(name) else model


def _config(path: Path) -> dict[str, Any]:
    """Read `config.json` beside the file; empty if there is none."""
    try:
        config = parse_json(read_text(path.parent / "config.json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TeacherError(f"cannot read {path.parent / 'config.json'}: {error}.") from None
    interface.check_config(config, path.parent / "config.json")
    return config if isinstance(config, dict) else {}


def check_size(path: Path, create: Callable[[], nn.Module]) -> None:
    """Compare the weights of a network with the bytes of their file, before it takes memory.

    Raises:
        ValueError: It has more weights than the file has bytes, and than FREE_WEIGHTS.
    """
    with torch.device("meta"):
        model = create()
    count, size = sum(each.numel() for each in model.parameters()), path.stat().st_size
    if count > max(size, FREE_WEIGHTS):
        raise ValueError(f"{path.name} has {size:,} bytes, which cannot be its {count:,} weights")


def _create(name: str, config: Mapping[str, Any], path: Path, classes: int = 0) -> nn.Module:
    """Create the untrained network of a file, as its config.json describes it."""
    given = dict(config.get("model_args") or {})
    own = given.pop("num_classes", 0)
    classes = classes or config.get("num_classes") or own
    create = partial(registry.untrained, name, classes, given, config.get("pretrained_cfg"))
    try:
        if not name.startswith("python:"):  # the user's own code has the size that it has
            check_size(path, create)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"this is no file of the network {name}: {error}.") from None
    return create()


def _state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, without their wrapping."""
    try:
        if path.suffix.lower() == ".safetensors":
            check_safetensors(path)
            return load_file(path)
        with path.open("rb") as file:
            if not (head := file.read(8)).startswith((b"PK", b"\x80")):
                raise ValueError(f"it is no file of torch.save, it begins with {head!r}")
        with torch.serialization.safe_globals([Namespace, *_NUMPY]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused a line later
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if other := describe_file(path):
            raise TeacherError(f"{path} contains no weights{other}.") from None
        reason = next((x for x in str(error).split("\n") if "GLOBAL" in x), "objects of Python")
        raise TeacherError(
            f"{path} contains more than weights ({reason.strip()}), and opening it could run "
            "code; it is not loaded. If you trust it, save its weights alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from None
    except Exception as error:  # torch raises many kinds for a broken file
        if is_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise TeacherError(
            f"{path}{describe_file(path)} cannot be read as weights: {first}. Fetch it again, or "
            "save them by safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from None
    while isinstance(found, Mapping):
        key = next((k for k in _WRAPPERS if isinstance(found.get(k), Mapping)), None)
        if key is None:
            return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        log.info("%s: the weights under %r are used", path.name, key)
        found = found[key]
    raise TeacherError(f"{path} contains a {type(found).__name__}, expected tensors by name.")


def _by_timms_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors to the network's own names, as far as possible."""
    wanted = model.state_dict()
    prefixes = {
        name.removesuffix(end): None
        for end in wanted
        for name in state
        if name.endswith(end) and (name == end or name[-len(end) - 1] == ".")
    }
    common = max(prefixes, key=lambda p: sum(p + name in state for name in wanted), default="")
    state = {k.removeprefix(common): v for k, v in state.items() if k.startswith(common)}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or state.keys() == wanted.keys():
        return state
    try:
        return dict(convert(state, model))
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError):
        return state  # of another network: `_fill` names the missing tensors


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    unknown = [key for key in state if key not in wanted]
    for keys, what in ((missing, "lacks"), (other, "has other shapes of"), (unknown, "also has")):
        if keys:
            raise TeacherError(
                f"{path} does not fit the network {name}: it {what} {len(keys)} of {len(wanted)} "
                f"tensors (first: {keys[0]}). Pass --architecture with the network of the file; a "
                "teacher needs its classifier, too."
            )
    model.load_state_dict(state, strict=False)
