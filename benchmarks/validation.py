"""timm's validation beside `kdcache eval`: predictions compared picture by picture.

    python -m benchmarks.validation FOLDER [--pictures 500] [--json FILE]

FOLDER contains JPEG photographs. Three networks: lite0-imagenet (the extra [lite]) with its
weights, 224 px; and with random weights a ResNet-50 with the preprocessing of `resnet50.a1_in1k`
(trained at 224 px, tested at 288) and a RegNetX with that of a SigLIP (squashed to 256 px, crop 1).
The BatchNorm statistics of the random ones are those of some of the pictures, so that they predict
various classes. timm's side has the arguments of its validate.py: the data configuration with the
size for tests, its data set and its loader, in batches of its own.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader, create_transform, resolve_data_config
from timm.models import save_for_hf

from benchmarks.machine import machine
from cache_tools.data.open import open_images
from pipeline.teacher import lite
from train.evaluate import accuracy, models
from train.evaluate.models import EvalOptions

LIBRARIES = ("pillow", "simplejpeg", "torch", "torchvision", "timm")
CPU = torch.device("cpu")
A1 = {"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "interpolation": "bicubic"}
A1 |= {"crop_pct": 0.95, "test_crop_pct": 1.0}
SQUASHED = {"input_size": (3, 256, 256), "crop_pct": 1.0, "crop_mode": "squash"}
SQUASHED |= {"interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
RANDOM: dict[str, dict[str, Any]] = {"resnet50": A1, "regnetx_002": SQUASHED}
_BATCH, _SEEN = 50, 32


def numbered(pictures: list[Path], folder: Path) -> None:
    """Copy pictures into class folders named by numbers."""
    for number, picture in enumerate(pictures):
        (folder / str(number)).mkdir(parents=True)
        shutil.copy(picture, folder / str(number) / f"{number}.jpg")


def of_timm(model: torch.nn.Module, folder: Path) -> dict[str, int]:
    """Class of each picture as timm's validate.py predicts it."""
    config = resolve_data_config({}, model=model, use_test_size=True)
    dataset = create_dataset("", root=str(folder), split="validation")
    of_input = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    wanted = {name: config[name] for name in of_input}
    loader = create_loader(dataset, batch_size=_BATCH, num_workers=1, device=CPU, **wanted)
    with torch.inference_mode():
        predicted = torch.cat([model(x).argmax(1) for x, _ in loader]).tolist()
    names = [Path(name).stem for name in dataset.filenames(basename=True)]
    return dict(zip(names, predicted, strict=True))


def of_kdcache(path: str, folder: Path) -> dict[str, int]:
    """Class of each picture as `kdcache eval` predicts it."""
    target = models.open_target(path, EvalOptions(CPU))
    images, predicted = open_images(str(folder), "validation"), list[int]()
    accuracy.evaluate_networks(
        target.students, images, on_prediction=lambda *found: predicted.extend(found[3].tolist())
    )
    return dict(zip((Path(name).stem for name in images.names), predicted, strict=True))


def random_network(name: str, config: Mapping[str, Any], folder: Path, out: Path) -> None:
    """Save a network with random weights that predicts various classes."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, pretrained_cfg_overlay=dict(config))
    dataset = create_dataset("", root=str(folder), split="validation")
    dataset.transform = create_transform(**resolve_data_config({}, model=model))
    x = torch.stack([dataset[i][0] for i in range(min(len(dataset), _SEEN))])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    save_for_hf(model.eval(), str(out), safe_serialization=True)


def compare(folder: Path, work: Path, random: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Predictions of lite0-imagenet and the `random` networks on the pictures of `folder`."""
    networks = {lite.NAME: (lite.NAME, lite.load().eval())}
    for name, config in random.items():
        random_network(name, config, folder, work / name)
        saved = timm.create_model(f"local-dir:{work / name}", pretrained=True).eval()
        networks[name] = str(work / name), saved
    result = {}
    for name, (path, model) in networks.items():
        theirs, ours = of_timm(model, folder), of_kdcache(path, folder)
        same = sum(ours[key] == predicted for key, predicted in theirs.items())
        frame = models.open_target(path, EvalOptions(CPU)).students[0].frame
        result[name] = {"pictures": len(theirs), "same": same, "size": frame.size}
        result[name]["classes"] = len(set(theirs.values()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = sorted(f for f in options.folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "pictures"
        numbered(files[: options.pictures], folder)
        found = compare(folder, Path(work), RANDOM)
    for name, row in found.items():
        print("{}: {same} of {pictures} predictions the same, {size} px".format(name, **row))
    if options.json:
        facts = {"networks": found, "machine": machine(LIBRARIES)}
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
