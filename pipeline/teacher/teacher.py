"""Any timm network as a teacher, by name, from the Hub, a folder or a file; or an ensemble of them.

A teacher is identified by its weights: the cache stores the SHA-256 over its state dict in
canonical order, so that another checkpoint under the same name is noticed, and the same weights are
recognized in any file. Nothing here unpickles code.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from cache_tools.config import build
from cache_tools.errors import TeacherError, UsageError
from cache_tools.spec.teacher import MAX_MEMBERS, Precision, TeacherSpec
from pipeline.recipe import TeacherSource
from pipeline.teacher import class_map as classes
from pipeline.teacher import create
from pipeline.teacher.class_map import ClassMap

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Teacher:
    """A network in evaluation mode, or an ensemble."""

    model: nn.Module
    """Normalised pictures to logits of its own head; of an ensemble, the `nn.ModuleList`."""
    spec: TeacherSpec
    """Identity, stored in the cache."""
    class_map: ClassMap | None = None
    """Mapping of its head's classes to those of `spec`."""
    members: tuple["Teacher", ...] = ()
    """The members of an ensemble, in the order of `spec.members`."""


def load(
    name: str,
    view_size: int,
    precision: Precision,
    random_weights: bool = False,
    architecture: str = "",
    class_map: str = "",
) -> Teacher:
    """Load a teacher.

    Args:
        name: A timm name ("resnet50.a1_in1k"), "hf-hub:user/model", a folder with `config.json` and
            `model.safetensors` as timm saves them, a file of weights, or "lite0-imagenet".
        view_size: Height and width of the views in pixels; a network of fixed size must fit.
        precision: Autocast type of its forward pass.
        random_weights: Use of an untrained network of this architecture, to measure speed.
        architecture: timm's name of the network in a file.
        class_map: File that maps its classes to those of the data set (`class_map`).

    Raises:
        UsageError: No such network, or one for views of another size.
        TeacherError: Its weights are not available.
    """
    stored_name, model = create.create(name, random_weights, architecture)
    model = model.eval().requires_grad_(False)
    config = cast(dict[str, Any], model.pretrained_cfg)
    expected = config.get("input_size", (3, view_size, view_size))[-1]
    if config.get("fixed_input_size") and expected != view_size:
        raise UsageError(
            f"the teacher {name} takes pictures of {expected} px only, the recipe makes views of "
            f"{view_size} px. Pass views.size={expected}, or views.teacher_size={expected} to "
            "render the same views at its own size."
        )
    mapped = classes.load(class_map, model) if class_map else None
    num_classes = len(mapped.sources) if mapped else cast(int, model.num_classes)
    if num_classes < 2:
        raise UsageError(
            f"the teacher {name} has {num_classes} classes, expected two or more. Choose a network "
            "with a head for classification."
        )
    digest = weights_sha256(model)
    try:
        spec = TeacherSpec(
            name=stored_name,
            architecture=config.get("architecture", stored_name),
            weights_sha256=digest,
            num_classes=num_classes,
            mean=tuple(float(v) for v in config["mean"]),  # type: ignore[arg-type]
            std=tuple(float(v) for v in config["std"]),  # type: ignore[arg-type]
            precision=precision,
            input_size=int(expected),
            interpolation=str(config.get("interpolation") or ""),
            class_map_sha256=mapped.sha256 if mapped else "",
        )
        spec = build(TeacherSpec, spec.mapping, f"the teacher {name}")
    except (KeyError, TypeError, ValueError) as error:
        raise TeacherError(
            f"the configuration of the teacher {name} is invalid: {str(error).rstrip('.')}. "
            "Correct mean, std and input_size of its pretrained_cfg: three numbers each."
        ) from None
    of = f", of {model.num_classes} by the class map" if mapped else ""
    log.info("teacher %s: %d classes%s, %s…", name, num_classes, of, spec.weights_sha256[:19])
    if view_size != expected:
        log.info(
            "the teacher was trained at %d px and is shown views of %d px, as views.size of the "
            "recipe has it; views.teacher_size changes the teacher's views alone",
            expected,
            view_size,
        )
    return Teacher(model, spec, mapped)


def load_all(
    sources: Sequence[TeacherSource],
    view_size: int,
    precision: Precision,
    random_weights: bool = False,
) -> Teacher:
    """Load one teacher, or several whose probabilities are averaged.

    Raises:
        UsageError, TeacherError: As `load`, or their classes differ, or two are the same.
    """
    loaded = [
        load(s.name, view_size, precision, random_weights, s.architecture, s.class_map)
        for s in sources
    ]
    return loaded[0] if len(loaded) == 1 else ensemble(loaded, [s.weight for s in sources])


def ensemble(teachers: Sequence[Teacher], weights: Sequence[float]) -> Teacher:
    """Combine teachers by the weighted mean of their probabilities; weights may have any sum.

    Raises:
        UsageError: Their classes differ, or two are the same.
    """
    if len(teachers) > MAX_MEMBERS:
        raise UsageError(
            f"{len(teachers)} teachers are too many: at most {MAX_MEMBERS} are possible."
        )
    total = math.fsum(weights)
    pairs = [(t, w / total) for t, w in zip(teachers, weights, strict=True)]
    pairs.sort(key=lambda pair: _identity(pair[0].spec))
    members = tuple(t for t, _ in pairs)
    for a, b in pairwise(members):
        if _identity(a.spec) == _identity(b.spec):
            raise UsageError(
                f"{a.spec.name} and {b.spec.name} are the same network (weights "
                f"{a.spec.weights_sha256[:19]}…). Name it once, with a larger weight."
            )
        if a.spec.num_classes != b.spec.num_classes:
            raise UsageError(
                f"the teachers {a.spec.name} and {b.spec.name} have {a.spec.num_classes} and "
                f"{b.spec.num_classes} classes, and only equal ones can be averaged. Pass a "
                "--class-map for each of them ('' for none), or other teachers."
            )
    first, named = members[0].spec, tuple(teacher.spec.as_member(w) for teacher, w in pairs)
    spec = TeacherSpec.of_members(named, first.num_classes, first.precision)
    log.info("mean of probabilities: %s", spec.name)
    return Teacher(nn.ModuleList([t.model for t in members]), spec, None, members)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor of the state dict, by name."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        header = f"{key}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0"
        digest.update(header.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def _identity(spec: TeacherSpec) -> tuple[str, str]:
    return spec.weights_sha256, spec.class_map_sha256
