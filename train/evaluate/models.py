"""Networks for `kdcache eval`: the students of a run, a saved network, or a timm model by name.

Images are prepared as timm's validate.py does, by timm's `resolve_data_config`: size and crop of a
run's students come from the run, also when one of its model folders is named; those of any other
network from its `pretrained_cfg`, where sizes and crops for tests precede those of the training.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config

from cache_tools.errors import RunNotFound, UsageError
from cache_tools.spec.teacher import Precision
from cache_tools.storage import seal
from train import recipe as recipes
from train import run_dir, run_state
from train.data.device_batch import InputTransform
from train.evaluate.accuracy import Network
from train.evaluate.crops import INTERPOLATION, TimmFrame
from train.networks import NETWORK


@dataclass(frozen=True)
class EvalOptions:
    """Device and preprocessing of an evaluation."""

    device: torch.device
    """Device of all networks."""
    size: int | None = None
    """Pixels a side; None: the network's own."""
    crop: float | None = None
    """Share of the shorter side; None: the network's own."""
    architecture: str = ""
    """Name of the student in a folder, needed where it is code (`python:MODULE:FUNCTION`)."""


@dataclass(frozen=True)
class EvalTarget:
    """Networks to measure, with their run."""

    students: tuple[Network, ...]
    """One network, or a student and its moving average."""
    config: dict[str, Any] | None
    """config.json of their run; None: not of a run."""


@dataclass(frozen=True)
class _Preprocessing:
    """Preprocessing in place of the network's own, and precision."""

    data_config: dict[str, Any]
    """Arguments of timm's `resolve_data_config`."""
    precision: Precision


_OWN = _Preprocessing({}, "fp32")


def open_target(path: str, options: EvalOptions) -> EvalTarget:
    """Open the networks of a run, of a folder that timm saved, or of a name.

    Raises:
        RunNotFound, CacheIncomplete: No run, or one that is not finished.
        UsageError, TeacherError: No such network, or one whose weights cannot be loaded.
    """
    folder = Path(path)
    if not folder.is_dir():
        nowhere = path.startswith(("/", ".")) or path.count("/") > 1
        if folder.exists() or (nowhere and ":" not in path):
            raise RunNotFound(
                f"there is no run at {path}, and no network. Pass the folder of a run, a folder "
                "with config.json and model.safetensors, or a network's name."
            )
        return EvalTarget((_network("student", path, options),), None)
    config = run_dir.read_config(folder)
    if "recipe" in config:
        return _of_run(folder, config, options)
    parent = folder.resolve().parent / "config.json"
    config = run_dir.read_json(parent) if parent.is_file() else {}
    of_run = "recipe" in config
    preprocessing = _preprocessing(config, folder.parent) if of_run else _OWN
    student = _network("student", str(folder), options, preprocessing)
    return EvalTarget((student,), config if of_run else None)


def open_teacher(name: str, size: int, student: Network, options: EvalOptions) -> Network:
    """Open a teacher for the student's images at `size` pixels, or its own fixed size."""
    frame = student.frame
    config = _config(size, frame.crop, frame.interpolation, frame.crop_mode)
    preprocessing = _Preprocessing(config, student.feed.precision)
    return _network("teacher", name, replace(options, size=None), preprocessing)


def _of_run(folder: Path, config: dict[str, Any], options: EvalOptions) -> EvalTarget:
    run_state.check_result(folder)
    whole = run_state.of(folder) == "finished"
    if not whole and not (folder / "model" / "model.safetensors").is_file():
        raise run_state.unfinished(folder)
    seal.check_network(folder / "model")
    preprocessing = _preprocessing(config, folder)
    students = [
        _network(name, str(folder / weights), options, preprocessing)
        for name, weights in (("student", "model"), ("student_ema", "model-ema"))
        if (folder / weights).is_dir()
    ]
    return EvalTarget(tuple(students), config)


def _preprocessing(config: dict[str, Any], folder: Path) -> _Preprocessing:
    recipe = recipes.build(config["recipe"], f"{folder}/config.json")
    size = int(config.get("eval_size", config["view_size"]))  # an earlier kdcache had one size
    data_config = _config(size, recipe.crop_pct, INTERPOLATION, "center")
    return _Preprocessing(data_config, recipe.precision)


def _config(size: int, crop: float, interpolation: str, crop_mode: str) -> dict[str, Any]:
    """Arguments of timm's `resolve_data_config`."""
    filters = {"interpolation": interpolation, "crop_mode": crop_mode}
    return {"img_size": size, "crop_pct": crop, **filters}


def _network(
    name: str, path: str, options: EvalOptions, preprocessing: _Preprocessing = _OWN
) -> Network:
    """Load a network; the options precede `preprocessing`, which precedes `pretrained_cfg`."""
    architecture = options.architecture if name != "teacher" else ""
    model: Any = NETWORK.load()(path, architecture=architecture)
    own = model.pretrained_cfg
    fixed = int(own["input_size"][-1]) if own.get("fixed_input_size") else 0
    given = {"img_size": options.size or fixed, "crop_pct": options.crop}
    wanted = preprocessing.data_config | {key: value for key, value in given.items() if value}
    found = resolve_data_config(wanted, model=model, use_test_size=True)
    size, mean, std = found["input_size"][-1], tuple(found["mean"]), tuple(found["std"])
    if fixed and size != fixed:
        raise UsageError(f"{path} accepts images of {fixed} px only. Leave out --size.")
    frame = TimmFrame(size, found["crop_pct"], found["interpolation"], found["crop_mode"], mean)
    feed = InputTransform(options.device, preprocessing.precision, mean, std)
    memory = torch.channels_last if options.device.type == "cuda" else torch.contiguous_format
    model = model.to(options.device, memory_format=memory)
    return Network(name, model, feed, frame, int(model.num_classes), fixed)
