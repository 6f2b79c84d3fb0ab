"""Any timm network as a teacher: by name, from the Hub, or from a folder with safetensors.

A teacher is known by its weights: the SHA-256 over its state dict in canonical order stands in the
cache, so that another checkpoint under the same name is noticed. Nothing here unpickles code.
"""

import difflib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.spec import Precision, TeacherSpec
from pipeline import lite

log = logging.getLogger("kdcache")
_PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".tar"}


@dataclass(frozen=True)
class Teacher:
    """A network in evaluation mode and what it is."""

    model: nn.Module
    spec: TeacherSpec


def load(name: str, view_size: int, precision: Precision, random_weights: bool = False) -> Teacher:
    """Load a teacher.

    Args:
        name: A timm name ("resnet50.a1_in1k"), "hf-hub:user/model", a folder with `config.json` and
            `model.safetensors` as timm saves them, such a safetensors file, or "lite0-imagenet".
        view_size: Height and width of the views in pixels; a network of fixed size must fit.
        precision: Autocast type of its forward pass.
        random_weights: Make a network of this architecture without its weights, to measure speed.

    Raises:
        UsageError: No such network, or one that does not take views of this size.
        TeacherError: Its weights cannot be had.
    """
    known_as, model = _create(name, random_weights)
    model = model.eval().requires_grad_(False)
    config = cast(dict[str, Any], model.pretrained_cfg)
    expected = config.get("input_size", (3, view_size, view_size))[-1]
    if config.get("fixed_input_size") and expected != view_size:
        raise UsageError(
            f"the teacher {name} takes pictures of {expected} px only, the recipe makes views of "
            f"{view_size} px. Pass views.size={expected}."
        )
    spec = TeacherSpec(
        name=known_as,
        architecture=config.get("architecture", known_as),
        weights_sha256=weights_sha256(model),
        num_classes=cast(int, model.num_classes),
        mean=tuple(float(v) for v in config["mean"]),  # type: ignore[arg-type]
        std=tuple(float(v) for v in config["std"]),  # type: ignore[arg-type]
        precision=precision,
    )
    log.info("teacher %s: %d classes, %s…", name, spec.num_classes, spec.weights_sha256[:19])
    return Teacher(model, spec)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of the state dict, by name."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        header = f"{key}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0"
        digest.update(header.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def _create(name: str, random_weights: bool) -> tuple[str, nn.Module]:
    """The network and the name that goes into the cache (never a path of one machine)."""
    if name == lite.NAME:
        return name, lite.load()
    if name.startswith("local:"):
        raise UsageError(
            f"the teacher is known as {name}: it came from a folder on the machine that made the "
            "cache. Pass --teacher with a folder that holds it."
        )
    path = Path(name)
    if path.suffix in _PICKLES:
        raise UsageError(
            f"{name} is a pickle, which can run code when it is opened; it is not loaded. Save the "
            "network with timm.models.save_for_hf(model, FOLDER, safe_serialization=True) and pass "
            "the folder."
        )
    if path.suffix == ".safetensors" or path.is_dir() or "/" in name.removeprefix("hf-hub:"):
        if not name.startswith("hf-hub:"):
            return _from_folder(path.parent if path.suffix == ".safetensors" else path)
    elif not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(
            f"timm {timm.__version__} has no network {name!r}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "See timm.list_models() for all."
        )
    return name, _from_timm(name, random_weights)


def _from_folder(folder: Path) -> tuple[str, nn.Module]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder}/model.safetensors is not there")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return f"local:{config['architecture']}", model
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(
            f"{folder} does not hold a network as timm saves it ({error}). It needs config.json "
            "and model.safetensors, as timm.models.save_for_hf(model, FOLDER, "
            "safe_serialization=True) writes them."
        ) from None


def _from_timm(name: str, random_weights: bool) -> nn.Module:
    if random_weights:
        log.warning("--random-weights: %s is not trained: measure speed only", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = timm.create_model(name, pretrained=False)
            return model
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds, from sockets to JSON
        raise TeacherError(
            f"the weights of {name} cannot be fetched ({type(error).__name__}: "
            f"{str(error).partition('.')[0]}). Check the network, or pass a "
            "folder with model.safetensors, or --teacher lite0-imagenet, or --random-weights to "
            "measure speed."
        ) from None
    return model
