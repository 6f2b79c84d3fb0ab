"""Create a network by name: from timm, the Hub, a folder, a file, or the wheel of `lite`."""

import difflib
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.file_contents import check_safetensors, describe_file, parse_json, read_text
from cache_tools.storage import seal
from pipeline.teacher import checkpoint, lite

log = logging.getLogger("kdcache")


def create(
    name: str, random_weights: bool = False, architecture: str = ""
) -> tuple[str, nn.Module]:
    """Create a network; also its name in the cache (never a path of one machine).

    `name` is as `teacher.load` takes it, `architecture` timm's name of the network in a file;
    `random_weights` leaves a network of timm's untrained.

    Raises:
        UsageError: There is no such network.
        TeacherError: Its weights are not available.
    """
    stored, model = _by_name(name, random_weights, architecture)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 0, 0)
    modules, first = dict(model.named_modules()), config.get("first_conv") or ()
    for stem in (first,) if isinstance(first, str) else first:
        channels = getattr(modules.get(stem), "in_channels", channels)
    fixed, embed = config.get("fixed_input_size"), modules.get("patch_embed")
    if (own := getattr(embed, "img_size", None)) and getattr(embed, "strict_img_size", True):
        (height, width), fixed = own, True
    if channels != 3 or (fixed and height != width):
        raise UsageError(
            f"the network {name} takes pictures of {channels} channels and {height} × {width} "
            "pixels; views are square and RGB. Choose another network."
        )
    return stored, model


def _by_name(name: str, random_weights: bool, architecture: str) -> tuple[str, nn.Module]:
    if name == lite.NAME:
        return name, lite.load()
    if name.startswith("local:"):
        raise UsageError(
            f"the teacher {name} was loaded from a folder on the machine that made the cache. Pass "
            "--teacher with a folder that contains it."
        )
    path = Path(name.removeprefix("local-dir:"))
    if path.suffix.lower() in checkpoint.SUFFIXES and not path.is_dir():
        timm_name, model = checkpoint.load(path, architecture)
        return f"local:{timm_name}", model
    if path.is_dir() or name.startswith("local-dir:"):
        return _from_folder(path)
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        raise TeacherError(
            f"there is no folder {name}. A teacher is a timm name, hf-hub:USER/NAME, a folder with "
            "config.json and model.safetensors, or a file of weights."
        )
    if "/" not in name:
        _refuse_unknown(name)
    return name, _from_timm(name, random_weights)


def _refuse_unknown(name: str) -> None:
    """Raise UsageError if timm has no network of this name, or no weights of this tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
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


def _from_folder(folder: Path) -> tuple[str, nn.Module]:
    seal.check_network(folder)
    try:
        config = parse_json(read_text(folder / "config.json"))
        if not isinstance(config["architecture"], str):
            raise TypeError(f"its architecture is {config['architecture']!r}")
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder}/model.safetensors is not there")
        check_safetensors(folder / "model.safetensors")
        checkpoint.check_size(folder / "model.safetensors", f"local-dir:{folder}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return f"local:{config['architecture']}", model
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TeacherError(
            f"{folder}{describe_file(folder / 'model.safetensors')} does not contain a network as "
            f"saved by timm ({error}). It needs config.json and model.safetensors, as "
            "timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes them."
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
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: "
            f"{str(error).partition('.')[0]}). Check the network, or pass a "
            "folder with model.safetensors, or --teacher lite0-imagenet, or --random-weights to "
            "measure speed."
        ) from None
    return model
