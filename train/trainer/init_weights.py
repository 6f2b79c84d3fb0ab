"""Initial weights of a student: those of a library, of the Hub, or of an earlier run.

Only safetensors and timm's own loading (`weights_only`) are used: nothing here runs code of a
checkpoint. Every tensor must be there and have its shape, but for the head: one of another number
of classes starts at random, which is logged.
"""

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cache_tools.errors import UsageError
from cache_tools.file_contents import check_safetensors, describe_file
from cache_tools.runtime.device_memory import is_out_of_memory
from cache_tools.storage import seal
from train.networks import LIBRARIES, NETWORK

log = logging.getLogger("kdcache")


def apply_init(
    student: nn.Module, name: str, init: str, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Give `student`, called `name` in messages, the weights of `init` (`TrainRecipe.init`).

    timm adapts its own weights to `kwargs`, those of the student: another img_size, patch_size.

    Raises:
        UsageError: There are no such weights, or they are those of another network.
    """
    own, state = student.state_dict(), _read(init, kwargs or {})
    # networks with a distillation token have two classifiers
    named = (getattr(student, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (named,) if isinstance(named, str) else tuple(named)
    head = [key for key in own if key.rpartition(".")[0] in names]
    fresh = [key for key in head if _differs(key, own, state)]
    state |= {key: own[key] for key in fresh}
    wrong = [key for key in own if _differs(key, own, state)]
    if wrong or (strange := sorted(state.keys() - own.keys())):
        first = wrong[0] if wrong else strange[0]
        raise UsageError(
            f"init={init} holds the weights of another network than {name}: "
            f"{len(wrong)} of its {len(own)} tensors are not there or have another shape, and "
            f"{len(state.keys() - own.keys())} are strange to it (the first is {first}). Choose "
            "weights of the same timm name."
        )
    student.load_state_dict(state)
    log.info("the student %s starts from the weights of %s", name, init)
    if fresh:
        classes = own[fresh[0]].shape[0]
        log.info("but its head, %s for %d classes, starts at random", ", ".join(fresh), classes)


def _read(init: str, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that `init` names, on the CPU."""
    if init.partition(":")[0] in LIBRARIES:
        return dict(NETWORK.load()(init).state_dict())
    place = Path(init.removeprefix("local-dir:"))
    if init.startswith("local-dir:") or place.is_dir():
        seal.check_network(place)
        return _read_file(place / "model.safetensors", init)
    suffix = place.suffix.lower()
    if suffix == ".safetensors":
        return _read_file(place, init)
    pickles = {".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"}
    if suffix in pickles and not init.startswith("hf-hub:"):
        raise UsageError(
            f"init={init} is a pickle, which can run code when it is opened; it is not loaded. "
            "Save the network with timm.models.save_for_hf(model, FOLDER, "
            "safe_serialization=True) and pass init=local-dir:FOLDER."
        )
    return _from_timm(init, kwargs)


def _read_file(path: Path, init: str) -> dict[str, Tensor]:
    try:
        check_safetensors(path)
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"init={init}: {path}{describe_file(path)} cannot be read ({error}). A run of kdcache "
            "train keeps its student in RUN/model: init=local-dir:RUN/model."
        ) from None


def _from_timm(init: str, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    if not init.startswith("hf-hub:") and not timm.is_model(init.partition(".")[0]):
        near = difflib.get_close_matches(init, timm.list_pretrained(), n=3)
        raise UsageError(
            f"timm {timm.__version__} has no weights {init!r} to start from. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "See timm.list_pretrained(); a folder is init=local-dir:FOLDER."
        )
    try:
        with torch.random.fork_rng(devices=[]):  # the student's own start depends on its seed only
            network: nn.Module = timm.create_model(init, pretrained=True, **kwargs)
    except Exception as error:  # the hub's client raises many kinds, from sockets to JSON
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"the weights of init={init} cannot be fetched ({type(error).__name__}: "
            f"{str(error).partition('.')[0]}). Check the network, or pass init=local-dir:FOLDER "
            "with model.safetensors in it."
        ) from None
    return dict(network.state_dict())


def _differs(key: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return key not in state or state[key].shape != own[key].shape
