"""Model card of an exported student: input of timm's `generate_readme`."""

from collections.abc import Sequence
from typing import Any

from cache_tools import config
from cache_tools.runtime.text import counted
from cache_tools.share import markdown
from cache_tools.spec import class_names
from cache_tools.spec.views import ViewSpec
from train.recipe import TrainRecipe

TAGS = ("image-classification", "timm", "transformers", "knowledge-distillation", "kdcache")
_TRAINING = {
    "kd": "distilled from {teacher}: trained on the teacher's stored soft targets, on exactly the "
    "teacher's views",
    "online": "distilled from {teacher}, which ran in the training loop",
    "labels": "trained on labels, on the views of a cache of {teacher}",
}


def describe(
    facts: dict[str, Any], license_: str, place: str, architecture: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Describe a student in the form of timm's functions.

    `facts` are those under `kdcache` in the exported config.json, `place` is "local-dir:FOLDER" or
    "hf-hub:REPO", `architecture` the name of the network with the prefix of its library, `classes`
    the names of its classes, if the data set has any.
    """
    teacher = facts["teacher"]
    library, colon, name = architecture.partition(":")
    library = library if colon else "timm"
    named = classes and f"{len(classes):,}: {markdown.text(class_names.summary(classes))}"
    training = _TRAINING[facts["mode"]].format(teacher=markdown.code(teacher["name"]))
    return {
        "tags": [tag for tag in TAGS if library == "timm" or tag not in ("timm", "transformers")]
        + [library] * (library in ("torchvision", "transformers")),
        "library_name": {"python": "pytorch"}.get(library, library),
        "license": license_,
        "description": f"{markdown.code(facts['student'])}, {training} "
        f"(kdcache {facts['kdcache_version']}).",
        "details": {
            "Teacher": f"{markdown.code(teacher['name'])} "
            f"({markdown.text(teacher['architecture'])}), weights sha256 "
            f"{markdown.code(teacher['weights_sha256'])}",
            "Cache": f"{markdown.code(facts['cache_fingerprint'])}, "
            f"{counted(facts['samples'], 'image')} × "
            f"{counted(facts['views_per_sample'], 'view')}",
            **({"Classes": named} if named else {}),
            "Training": _changed(facts["recipe"], TrainRecipe),
            "Views": _changed(facts["views"], ViewSpec),
        },
        "usage": usage(place, library, name),
        "comparison": _table(facts),
    }


_USAGE = """```python
import timm
import torch
from PIL import Image

model = timm.create_model("{model_name}", pretrained=True).eval()
data_config = timm.data.resolve_data_config(model=model, use_test_size=True)
transform = timm.data.create_transform(**data_config)
with torch.inference_mode():
    logits = model(transform(Image.open("picture.jpg").convert("RGB"))[None])
```"""
_USAGE_OF_OTHERS = """```python
import json

import timm
import torch
from PIL import Image
{imports}

folder = {folder}
with open(f"{{folder}}/config.json") as file:
    config = json.load(file)
{create}
model.eval()
pretrained_cfg = config["pretrained_cfg"]
data_config = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg, use_test_size=True)
transform = timm.data.create_transform(**data_config)
with torch.inference_mode():
    logits = model(transform(Image.open("picture.jpg").convert("RGB"))[None]){logits}
```"""
_FILL = '\nmodel.load_state_dict(load_file(f"{folder}/model.safetensors"))'


def usage(place: str, library: str, name: str) -> str:
    """Return a program that opens the student: of `library`, by its name there."""
    if library == "timm":
        return _USAGE.format(model_name=place)
    hub, path = place.startswith("hf-hub:"), place.partition(":")[2]
    imports = ["from huggingface_hub import snapshot_download"] * hub
    arguments = '**config["model_args"]'
    if library == "transformers":
        imports += ["from transformers import AutoModelForImageClassification"]
        create = "model = AutoModelForImageClassification.from_pretrained(folder)"
    elif library == "torchvision":
        imports += [
            "from safetensors.torch import load_file",
            "from torchvision.models import get_model",
        ]
        create = f'model = get_model("{name}", {arguments}){_FILL}'
    else:
        module, _, function = name.partition(":")
        imports += [f"from {module} import {function}", "from safetensors.torch import load_file"]
        create = f"model = {function}({arguments}){_FILL}"
    return _USAGE_OF_OTHERS.format(
        imports="\n".join(imports),
        folder=f'snapshot_download("{path}")' if hub else f'"{path}"',
        create=create,
        logits=".logits" * (library == "transformers"),
    )


def _changed(values: dict[str, Any], kind: type[TrainRecipe] | type[ViewSpec]) -> dict[str, str]:
    """Values that differ from their defaults, as text."""
    shown = config.changed(values, kind)
    machine = ("threads", "checkpoint_minutes")
    return {name: _text(value) for name, value in shown.items() if name not in machine}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(markdown.code(f"{key}={found}") for key, found in value.items())
    return markdown.code(value) if isinstance(value, str) and value else str(value)


def _table(facts: dict[str, Any]) -> str:
    """Table of the accuracies of all weights of the run, the exported ones marked."""
    if facts.get("top1") is None:
        return "There was no labelled validation split: nothing was measured."
    lines = ["| weights | top-1 | top-5 |", "|---|---|---|"]
    for name, accuracy in facts["accuracies"].items():
        mark = " (these)" if name == facts["weights"] else ""
        cells = ("–" if (of := accuracy[key]) is None else f"{of:.2f}" for key in ("top1", "top5"))
        lines.append(f"| {name}{mark} | {' | '.join(cells)} |")
    images = f"{facts['validation_images']:,} validation images"
    crop = facts["recipe"]["crop_pct"]
    what = f"{images}, centre crop of {crop} at {facts['eval_size']} px"
    return "\n".join([*lines, "", f"In percent, {what}."])
