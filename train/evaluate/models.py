"""What `kdcache eval` measures: the students of a run, a saved network, or any by its name.

A run says itself at which size its students see pictures and how they are cropped, also when one
of its model folders is named; any other network's `pretrained_cfg` does.
"""

from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_tools.errors import CacheNotFound, UsageError
from cache_tools.spec.teacher import Precision
from train import recipe as recipes
from train import run_dir, run_state
from train.data.device_batch import Input
from train.evaluate.accuracy import Network
from train.evaluate.crops import Frame


@dataclass(frozen=True)
class Wish:
    """How pictures are to be shown, where the user says so."""

    device: torch.device
    size: int | None = None
    """Pixels a side; None: the network's own."""
    crop: float | None = None
    """Share of the shorter side; None: the network's own."""


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    students: tuple[Network, ...]
    """One network, or a student and its moving average."""
    config: dict[str, Any] | None
    """config.json of the run they are of."""


@dataclass(frozen=True)
class _Way:
    """How a network that was trained here sees pictures."""

    frame: Frame
    precision: Precision


def open_subject(where: str, wish: Wish) -> Subject:
    """The networks at `where`: a run, a folder that timm saved, or a name.

    Raises:
        CacheNotFound, CacheIncomplete: No run, or one that is not finished.
        UsageError, TeacherError: No such network, or one whose weights cannot be had.
    """
    folder = Path(where)
    if not folder.is_dir():
        if folder.exists() or where.startswith(("/", ".")) or where.count("/") > 1:
            raise CacheNotFound(
                f"there is no run at {where}, and no network. Pass the folder of a run, a folder "
                "with config.json and model.safetensors, or a network's name."
            )
        return Subject((_network("student", where, wish),), None)
    config = run_dir.read_config(folder)
    if "recipe" in config:
        return _of_run(folder, config, wish)
    of_run = folder.resolve().parent / "config.json"
    above = run_dir.read_json(of_run) if of_run.is_file() else {}
    way = _way(above, folder.parent) if "recipe" in above else None
    student = _network("student", str(folder), wish, way)
    return Subject((student,), above if way else None)


def open_teacher(name: str, size: int, crop: float, precision: Precision, wish: Wish) -> Network:
    """A teacher that sees pictures at `size`, unless it is made for one of its own."""
    way = _Way(Frame(size, crop), precision)
    return _network("teacher", name, replace(wish, size=None), way)


def _of_run(folder: Path, config: dict[str, Any], wish: Wish) -> Subject:
    if not (folder / "model" / "model.safetensors").is_file():
        raise run_state.unfinished(folder)
    way = _way(config, folder)
    there = [
        _network(name, str(folder / place), wish, way)
        for name, place in (("student", "model"), ("student_ema", "model-ema"))
        if (folder / place).is_dir()
    ]
    return Subject(tuple(there), config)


def _way(config: dict[str, Any], folder: Path) -> _Way:
    recipe = recipes.build(config["recipe"], f"{folder}/config.json")
    return _Way(Frame(int(config["view_size"]), recipe.eval_crop), recipe.precision)


def _network(name: str, where: str, wish: Wish, way: _Way | None = None) -> Network:
    """Load a network and decide what it sees: the user's word, then `way`, then its own."""
    model: Any = _load(where)
    own = model.pretrained_cfg
    size = int(own["input_size"][-1])
    only = size if own.get("fixed_input_size") else 0
    if way is None:
        way = _Way(Frame(size, float(own.get("crop_pct") or 0.875)), "fp32")
    frame = Frame(wish.size or only or way.frame.size, wish.crop or way.frame.crop)
    if only and frame.size != only:
        raise UsageError(f"{where} takes pictures of {only} px only. Leave out --size.")
    feed = Input(wish.device, way.precision, tuple(own["mean"]), tuple(own["std"]))
    memory = torch.channels_last if wish.device.type == "cuda" else torch.contiguous_format
    model = model.to(wish.device, memory_format=memory)
    return Network(name, model, feed, frame, int(model.num_classes), only)


def _load(where: str) -> nn.Module:
    """A network from whichever package offers one."""
    found = entry_points(group="kdcache.teachers", name="network")
    if not found:
        raise UsageError("nothing is installed that loads a network. Install kdcache as a whole.")
    network: nn.Module = next(iter(found)).load()(where)
    return network
