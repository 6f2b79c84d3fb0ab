"""Networks for `kdcache eval`: the students of a run, a saved network, or a timm model by name.

Size and crop of a run's students come from the run, also when one of its model folders is named;
those of any other network from its `pretrained_cfg`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_tools.errors import CacheNotFound, UsageError
from cache_tools.runtime.plugins import Plugin
from cache_tools.spec.teacher import Precision
from train import recipe as recipes
from train import run_dir, run_state
from train.data.device_batch import InputTransform
from train.evaluate.accuracy import Network
from train.evaluate.crops import Frame

NETWORK: Plugin[Callable[[str], nn.Module]] = Plugin(
    "kdcache.teachers", "network", "load a network"
)


@dataclass(frozen=True)
class EvalOptions:
    """Device and preprocessing of an evaluation."""

    device: torch.device
    """Device of all networks."""
    size: int | None = None
    """Pixels a side; None: the network's own."""
    crop: float | None = None
    """Share of the shorter side; None: the network's own."""


@dataclass(frozen=True)
class EvalTarget:
    """Networks to measure, with their run."""

    students: tuple[Network, ...]
    """One network, or a student and its moving average."""
    config: dict[str, Any] | None
    """config.json of their run; None: not of a run."""


@dataclass(frozen=True)
class _Preprocessing:
    """InputTransform and precision of a network trained by kdcache."""

    frame: Frame
    precision: Precision


def open_target(path: str, options: EvalOptions) -> EvalTarget:
    """Open the networks of a run, of a folder that timm saved, or of a name.

    Raises:
        CacheNotFound, CacheIncomplete: No run, or one that is not finished.
        UsageError, TeacherError: No such network, or one whose weights cannot be loaded.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or path.startswith(("/", ".")) or path.count("/") > 1:
            raise CacheNotFound(
                f"there is no run at {path}, and no network. Pass the folder of a run, a folder "
                "with config.json and model.safetensors, or a network's name."
            )
        return EvalTarget((_network("student", path, options),), None)
    config = run_dir.read_config(folder)
    if "recipe" in config:
        return _of_run(folder, config, options)
    parent = folder.resolve().parent / "config.json"
    config = run_dir.read_json(parent) if parent.is_file() else {}
    preprocessing = _preprocessing(config, folder.parent) if "recipe" in config else None
    student = _network("student", str(folder), options, preprocessing)
    return EvalTarget((student,), config if preprocessing else None)


def open_teacher(
    name: str, size: int, crop: float, precision: Precision, options: EvalOptions
) -> Network:
    """Open a teacher with inputs of `size` pixels, unless it has a fixed size of its own."""
    preprocessing = _Preprocessing(Frame(size, crop), precision)
    return _network("teacher", name, replace(options, size=None), preprocessing)


def _of_run(folder: Path, config: dict[str, Any], options: EvalOptions) -> EvalTarget:
    if not (folder / "model" / "model.safetensors").is_file():
        raise run_state.unfinished(folder)
    preprocessing = _preprocessing(config, folder)
    students = [
        _network(name, str(folder / weights), options, preprocessing)
        for name, weights in (("student", "model"), ("student_ema", "model-ema"))
        if (folder / weights).is_dir()
    ]
    return EvalTarget(tuple(students), config)


def _preprocessing(config: dict[str, Any], folder: Path) -> _Preprocessing:
    recipe = recipes.build(config["recipe"], f"{folder}/config.json")
    return _Preprocessing(Frame(int(config["view_size"]), recipe.crop_pct), recipe.precision)


def _network(
    name: str, path: str, options: EvalOptions, preprocessing: _Preprocessing | None = None
) -> Network:
    """Load a network; the options precede `preprocessing`, which precedes `pretrained_cfg`."""
    model: Any = NETWORK.load()(path)
    own = model.pretrained_cfg
    size = int(own["input_size"][-1])
    fixed = size if own.get("fixed_input_size") else 0
    if preprocessing is None:
        preprocessing = _Preprocessing(Frame(size, float(own.get("crop_pct") or 0.875)), "fp32")
    wanted = preprocessing.frame
    frame = Frame(options.size or fixed or wanted.size, options.crop or wanted.crop)
    if fixed and frame.size != fixed:
        raise UsageError(f"{path} accepts images of {fixed} px only. Leave out --size.")
    feed = InputTransform(
        options.device, preprocessing.precision, tuple(own["mean"]), tuple(own["std"])
    )
    memory = torch.channels_last if options.device.type == "cuda" else torch.contiguous_format
    model = model.to(options.device, memory_format=memory)
    return Network(name, model, feed, frame, int(model.num_classes), fixed)
