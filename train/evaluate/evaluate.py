"""`kdcache eval`: students on validation sets, compared with their teacher.

The whole request is checked before a network runs. The teacher comes in two ways: as the stored
targets of a cache (on views that are drawn again), and as a network that runs on the validation
images beside the students.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import has_split, open_images
from cache_tools.errors import CacheMismatch, KdcacheError, UsageError
from cache_tools.runtime import threads
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.open import open_cache
from cache_tools.targets.statistics import check_agreement
from cache_tools.verify import probes
from train import backends
from train.evaluate import accuracy, agreement, confusion, metrics, models, real_labels
from train.evaluate.agreement import CacheAgreement
from train.evaluate.confusion import Confusions
from train.evaluate.models import EvalOptions, EvalTarget

log = logging.getLogger("kdcache")
_CONFUSIONS = 3
"""Wrong predictions that are listed."""
_LEFT_OUT = "the run's cache is left out: %s"
_OTHER_CLASSES = (
    "Its classes are probably others than those of the data set, or in another order: compare the "
    "two lists, or pass --force to go on."
)


@dataclass(frozen=True)
class EvalRequest:
    """Measurements to make."""

    data: tuple[str, ...] = ()
    """Validation sets; empty: the run's own."""
    real: str | None = None
    """File of ReaL labels, or "timm"."""
    cache: str | None = None
    """Cache to compare the students with; None: the run's own, if it exists."""
    views: int = 4096
    """Number of its views to compare on; 0: none."""
    teacher: str | None = None
    """Name or folder of a teacher to run beside the students."""
    force: bool = False
    """Go on with a teacher that agrees with the labels no more often than by chance."""


@dataclass(frozen=True)
class Reference:
    """Cache whose stored targets the students are compared with."""

    store: Cache
    """The cache."""
    images: ImageDataset
    """Its images in the order of its table."""
    size: int
    """Pixels a side at which the student is shown its views; 0: the cache's own."""


def measure(
    path: str, request: EvalRequest, options: EvalOptions, confusions: Confusions | None = None
) -> dict[str, Any]:
    """Measure a run, a folder with a saved network, or a network by its name.

    Predictions are counted in `confusions`.

    Returns:
        The facts of `--json`: a list of data sets, and the scores on cached views.

    Raises:
        KdcacheError: Something is missing, or does not fit together.
    """
    backends.configure(options.device)
    confusions = confusions or Confusions()
    target = models.open_target(path, options)
    student = target.students[0]
    reference = _reference(request, target)
    labels = real_labels.load(request.real) if request.real else {}
    sets = [_labelled(source, target) for source in request.data]
    sets = sets or _own_validation(target, reference)
    allowed = [real_labels.of(labels, images, student.num_classes) for images in sets]
    if labels and all(of_set is None for of_set in allowed):
        names = ", ".join(images.names[0] for images in sets) or "none"
        raise CacheMismatch(
            f"the ReaL labels {request.real} contain no image of the data sets (first: {names}). "
            "They are of ImageNet's validation split; pass --data with it."
        )
    teacher = None
    if request.teacher is not None:  # at the input size of the cache's views
        size = reference.store.spec.views.for_teacher().size if reference else student.frame.size
        teacher = models.open_teacher(request.teacher, options.size or size, student, options)
        if teacher.num_classes != student.num_classes:
            raise UsageError(
                f"the teacher {request.teacher} has {teacher.num_classes} classes, the student has "
                f"{student.num_classes}. Pass --teacher with one of the student's classes."
            )
    if options.device.type == "cpu":
        sizes = [n.frame.size for n in (student, teacher) if n is not None]
        torch.set_num_threads(threads.for_torch(max(sizes))[0])
    facts: dict[str, Any] = {"measured": path, "view_size": student.frame.size}
    facts |= {"crop": student.frame.crop, "interpolation": student.frame.interpolation}
    facts |= {"crop_mode": student.frame.crop_mode, "ece_bins": metrics.BINS, "data": []}
    for images, of_set in zip(sets, allowed, strict=True):
        scores = accuracy.evaluate_networks(target.students, images, of_set, teacher, confusions)
        if teacher is not None and not request.force:
            count, top1 = scores["teacher"].images, scores["teacher"].top1 or 0.0
            hits, chance = top1 * count / 100.0, 1.0 / teacher.num_classes
            check_agreement(hits, count, chance, images.source, _OTHER_CLASSES)
        by_name = {name: vars(score) for name, score in scores.items()}
        of_class = confusion.names_of(target.config, images.class_names, student.num_classes)
        pairs = confusions.pairs[images.source, target.students[-1].name]
        wrong = confusion.most_frequent(pairs, of_class, _CONFUSIONS)
        of = {"source": images.source, "networks": by_name, "confusions": wrong}
        facts["data"].append(of)
    facts["cache"] = None
    if reference is not None:
        try:
            found = agreement.measure(
                target.students,
                reference.store,
                reference.images,
                request.views,
                confusions,
                reference.size,
            )
        except KdcacheError as error:
            if request.cache is not None or not facts["data"]:
                raise
            log.warning(_LEFT_OUT, error)
        else:
            facts["cache"] = _on_cached_views(found, reference, request.force)
    # accuracies on the first data set, under the keys of a run's result.json
    first = facts["data"][0]["networks"] if facts["data"] else {}
    facts["images"] = first["student"]["images"] if first else 0
    for name, key in (("student", ""), ("student_ema", "_ema")):
        for share in ("top1", "top5"):
            value = first.get(name, {}).get(share)
            facts[share + key] = None if value is None else round(value, 3)
    return facts


def _on_cached_views(found: CacheAgreement, reference: Reference, force: bool) -> dict[str, Any]:
    """Scores on cached views, those of the stored targets among them, which are checked."""
    spec, stored = reference.store.spec, found.scores["teacher"]
    if spec.dataset.labels and not force:
        count = min(stored.images, spec.dataset.num_samples)  # views of one image agree alike
        chance = 1.0 / spec.teacher.num_classes
        hits = (stored.top1 or 0.0) * count / 100.0
        check_agreement(hits, count, chance, reference.store.name, _OTHER_CLASSES)
    return {
        "path": reference.store.name,
        "fingerprint": reference.store.spec.fingerprint,
        "views": found.views,
        "parts": found.parts,
        "networks": {name: vars(score) for name, score in found.scores.items()},
    }


def _own_validation(target: EvalTarget, reference: Reference | None) -> list[ImageDataset]:
    """Open the validation split of the run's data set; it may be missing beside a reference."""
    try:
        if target.config is None:
            raise UsageError("missing --data. Pass --data with a labelled validation set.")
        source = str(target.config["data"])
        if not has_split(source, "validation") and ("://" in source or Path(source).is_dir()):
            raise UsageError(
                f"the run's data set {source} has no validation split. Pass --data with one."
            )
        return [_labelled(source, target)]
    except UsageError as error:
        if reference is None:
            raise
        log.info("%s Only cached views are compared.", error)
        return []


def _labelled(source: str, target: EvalTarget) -> ImageDataset:
    """Open a validation set: class folders numbered as in training, labels checked."""
    if has_split(source, "train") and not has_split(source, "validation"):
        raise UsageError(f"{source} has a train split only. Pass --data with a validation set.")
    num_classes = target.students[0].num_classes
    classes = tuple((target.config or {}).get("class_names", ()))
    images = open_images(source, "validation", classes=classes or None)
    highest = int(images.label_N.max())
    named = len(images.class_names)
    if NO_LABEL in images.label_N or highest >= num_classes or named not in (0, num_classes):
        what = f"{named} class folders" if named else f"labels up to {highest}"
        if NO_LABEL in images.label_N:
            what = f"no label for {images.names[int((images.label_N == NO_LABEL).argmax())]!r}"
        raise UsageError(
            f"the validation images of {source} are not labelled with the {num_classes} classes "
            f"of this student: there is {what}. Pass --data with a data set that is; folders may "
            f"be named by class number, 0 .. {num_classes - 1}."
        )
    return images


def _reference(request: EvalRequest, target: EvalTarget) -> Reference | None:
    """Cache of the request, else the run's own; None if that is missing or `views` is 0."""
    if request.views == 0:
        return None
    if request.cache is not None:
        return _open_reference(request.cache, request, target)
    own = target.config["cache"] if target.config is not None else None
    if isinstance(own, list):
        log.info("this run was trained on several caches; pass --cache to compare with one")
        return None
    if own is None or not ("://" in own or Path(own).exists()):
        return None
    try:
        return _open_reference(own, request, target)
    except (KdcacheError, OSError) as error:
        log.warning(_LEFT_OUT, error)
        return None


def _open_reference(path: str, request: EvalRequest, target: EvalTarget) -> Reference:
    store, config = open_cache(path), target.config or {}
    probes.check_replayable(store)
    own, student = config.get("cache_fingerprint"), target.students[0]
    if request.cache is None and own != store.spec.fingerprint:
        raise CacheMismatch(f"{path} differs from the cache the run was trained on.")
    if (classes := store.spec.teacher.num_classes) != student.num_classes:
        raise UsageError(
            f"the cache {path} is of {classes} classes, the student has {student.num_classes}. "
            "Pass --cache with one of the student's classes, or --views 0."
        )
    # at which it was trained; without a size of its own, at that of the cache
    size = int(config["view_size"]) if config.get("recipe", {}).get("size") else 0
    if not student.accepts(size or store.spec.views.size):
        size = student.fixed_size
    view_params.at_size(store, size)
    sources = [config.get("data", ""), store.source, *request.data]
    source = next((s for s in sources if s and ("://" in s or Path(s).exists())), None)
    if source is None:
        raise UsageError(f"the images of {path} have moved. Pass --data with their new place.")
    images, covered = match.open_aligned(store.table, store.spec.dataset, source)
    if covered.split == "validation":
        log.warning("%s is of the validation split, on which the run was trained", store.name)
    return Reference(store, images, size)
