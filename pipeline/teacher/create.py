"""Create a network by name: of a library (`networks.registry`), a folder, a file, or `lite`."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from cache_tools.errors import KdcacheError, TeacherError, UsageError
from cache_tools.file_contents import check_safetensors, describe_file, parse_json, read_text
from cache_tools.storage import seal
from pipeline.networks import interface, of_timm, registry
from pipeline.teacher import checkpoint, lite

log = logging.getLogger("kdcache")


def create(
    name: str, random_weights: bool = False, architecture: str = ""
) -> tuple[str, nn.Module]:
    """Create a network; also its name in the cache (never a path of one machine).

    `name` is as `teacher.load` takes it, `architecture` the name of the network in a file;
    `random_weights` leaves a network of a library untrained.

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
    if registry.is_foreign(name):
        base, weights = registry.split_weights(name)
        if weights and (_is_file(Path(weights)) or Path(weights).is_dir()):
            return _by_name(weights, False, base)
        return _from_source(name, random_weights)
    path = Path(name.removeprefix("local-dir:"))
    if _is_file(path):
        loaded, model = checkpoint.load(path, architecture)
        return f"local:{loaded}", model
    if path.is_dir() or name.startswith("local-dir:"):
        return _from_folder(path, architecture)
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        raise TeacherError(
            f"there is no folder {name}. A teacher is a timm name, hf-hub:USER/NAME, a folder with "
            "config.json and model.safetensors, or a file of weights; or torchvision:NAME:WEIGHTS, "
            "transformers:USER/NAME, python:MODULE:FUNCTION."
        )
    return _from_source(name, random_weights)


def _is_file(path: Path) -> bool:
    return path.suffix.lower() in checkpoint.SUFFIXES and not path.is_dir()


def _from_source(name: str, random_weights: bool) -> tuple[str, nn.Module]:
    if random_weights:
        log.warning("--random-weights: %s is not trained: measure speed only", name)
        if "/" not in name and not registry.is_foreign(name):
            of_timm.refuse_unknown(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stored, model = name, registry.untrained(name)
    else:
        stored, model = registry.pretrained(name)
    return stored, interface.measure(model) if registry.is_foreign(name) else model


def _from_folder(folder: Path, architecture: str = "") -> tuple[str, nn.Module]:
    seal.check_network(folder)
    try:
        config = parse_json(read_text(folder / "config.json"))
        if "architecture" not in config and "model_type" in config:
            raise UsageError(f"{folder} is of transformers: name it as transformers:{folder}.")
        if not isinstance(config["architecture"], str):
            raise TypeError(f"its architecture is {config['architecture']!r}")
        interface.check_config(config, folder / "config.json")
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder}/model.safetensors is not there")
        check_safetensors(folder / "model.safetensors")
        given = architecture if registry.is_foreign(architecture) else ""
        if given or registry.is_foreign(config["architecture"]):
            loaded, model = checkpoint.load(folder / "model.safetensors", given)
            return f"local:{loaded}", model
        create = partial(timm.create_model, f"local-dir:{folder}")
        checkpoint.check_size(folder / "model.safetensors", create)
        model = create(pretrained=True)
        return f"local:{config['architecture']}", model
    except KdcacheError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError
    ) as error:  # fmt: skip
        raise TeacherError(
            f"{folder}{describe_file(folder / 'model.safetensors')} does not contain a network as "
            f"saved by timm ({error}). It needs config.json and model.safetensors, as "
            "timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes them."
        ) from None
