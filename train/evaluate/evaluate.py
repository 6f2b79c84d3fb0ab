"""`kdcache eval`: students on validation sets, and beside their teacher.

Everything that can be wrong with what the user asks for is looked at before the first picture is
shown to a network. The teacher comes in two ways: as what a cache stores of it (on views that are
drawn again), and as a network that sees the validation pictures beside the students.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.data import match
from cache_tools.data.images import Images
from cache_tools.data.open import has_split, open_images
from cache_tools.errors import CacheMismatch, KdcacheError, UsageError
from cache_tools.runtime import threads
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store.cache import Store
from cache_tools.store.open import open_cache
from cache_tools.verify import verify
from train import run_dir
from train.evaluate import accuracy, agreement, metrics, models, real_labels
from train.evaluate.accuracy import Network
from train.evaluate.confusion import Saw
from train.evaluate.models import Subject, Wish

log = logging.getLogger("kdcache")
_LEFT_OUT = "the run's cache is left out: %s"


@dataclass(frozen=True)
class Question:
    """What a user wants to know."""

    data: tuple[str, ...] = ()
    """Validation sets; none: the run's own."""
    real: str | None = None
    """File of ReaL labels, or "timm"."""
    cache: str | None = None
    """Cache to hold the students against; None: the run's own, if it is there."""
    views: int = 4096
    """How many of its views are looked at; 0: none."""
    teacher: str | None = None
    """Name or folder of a teacher to run beside the students."""


@dataclass(frozen=True)
class Validation:
    """One validation set."""

    images: Images
    """Labelled with the students' classes."""
    allowed: list[frozenset[int]] | None
    """[N] their ReaL labels, where there are."""


@dataclass(frozen=True)
class Reference:
    """A cache whose teacher the students are held against."""

    store: Store
    """The cache."""
    images: Images
    """Its pictures in the order of its table."""


def measure(where: str, question: Question, wish: Wish, saw: Saw | None = None) -> dict[str, Any]:
    """Measure what is at `where`.

    Args:
        where: A run, a folder with a saved network, or a network's name.
        question: On what, and beside whom.
        wish: How pictures are shown.
        saw: Who is told of every answer.

    Returns:
        The facts of `--json`: a list of data sets, and what was seen of the cache.

    Raises:
        KdcacheError: Something is not there, or does not fit together.
    """
    subject = models.open_subject(where, wish)
    student = subject.students[0]
    reference = _reference(question, subject)
    validations = _validations(question, subject, reference)
    teacher = _teacher(question, student, reference, wish)
    if wish.device.type == "cpu":
        sizes = [n.frame.size for n in (student, teacher) if n is not None]
        torch.set_num_threads(threads.for_torch(max(sizes))[0])
    facts: dict[str, Any] = {"measured": where, "view_size": student.frame.size}
    facts |= {"crop": student.frame.crop, "ece_bins": metrics.BINS, "data": []}
    for validation in validations:
        scores = accuracy.judge(
            subject.students, validation.images, validation.allowed, teacher, saw
        )
        told = {name: vars(score) for name, score in scores.items()}
        facts["data"].append({"source": validation.images.source, "networks": told})
    facts["cache"] = _looked(question, subject, reference, bool(facts["data"]), saw)
    return facts | _in_short(facts)


def _looked(
    question: Question,
    subject: Subject,
    reference: Reference | None,
    may_fail: bool,
    saw: Saw | None,
) -> dict[str, Any] | None:
    """What the cached views show; a cache nobody asked for may be in any state."""
    if reference is None:
        return None
    try:
        place = reference.store, reference.images
        seen = agreement.look(subject.students, *place, question.views, saw)
    except KdcacheError as error:
        if question.cache is not None or not may_fail:
            raise
        log.warning(_LEFT_OUT, error)
        return None
    return {
        "path": reference.store.name,
        "fingerprint": reference.store.spec.fingerprint,
        "views": seen.views,
        "parts": seen.parts,
        "networks": {name: vars(score) for name, score in seen.scores.items()},
    }


def _in_short(facts: dict[str, Any]) -> dict[str, Any]:
    """Accuracies on the first data set, by the names that a run's result.json has."""
    first = facts["data"][0]["networks"] if facts["data"] else {}
    short: dict[str, Any] = {"images": first["student"]["images"] if first else 0}
    for name, key in (("student", ""), ("student_ema", "_ema")):
        for share in ("top1", "top5"):
            value = first.get(name, {}).get(share)
            short[share + key] = None if value is None else round(value, 3)
    return short


def _validations(
    question: Question, subject: Subject, reference: Reference | None
) -> list[Validation]:
    """The validation sets the user names, else the run's own."""
    num_classes = subject.students[0].num_classes
    labels = real_labels.load(question.real) if question.real else {}
    if question.data:
        sets = [_labelled(source, subject) for source in question.data]
    else:
        sets = _own(subject, reference)
    found = [Validation(images, real_labels.of(labels, images, num_classes)) for images in sets]
    if labels and all(validation.allowed is None for validation in found):
        names = ", ".join(images.names[0] for images in sets) or "none"
        raise CacheMismatch(
            f"the ReaL labels {question.real} name no picture of the data sets (which have such "
            f"as {names}). They are of ImageNet's validation split; pass --data with it."
        )
    return found


def _own(subject: Subject, reference: Reference | None) -> list[Images]:
    """The validation split of the run's data set; none when its cache is there to look at."""
    try:
        if subject.config is None:
            raise UsageError("on which images? Pass --data with a labelled validation set.")
        source = str(subject.config["data"])
        if not has_split(source, "validation") and ("://" in source or Path(source).is_dir()):
            raise UsageError(
                f"the run's data set {source} has no validation split. Pass --data with one."
            )
        return [_labelled(source, subject)]
    except UsageError as error:
        if reference is None:
            raise
        log.info("%s Only cached views are looked at.", error)
        return []


def _labelled(source: str, subject: Subject) -> Images:
    """A validation set, its class folders numbered as in training, after a look at its labels."""
    if has_split(source, "train") and not has_split(source, "validation"):
        raise UsageError(f"{source} has a train split only. Pass --data with a validation set.")
    num_classes = subject.students[0].num_classes
    classes = tuple((subject.config or {}).get("class_names", ()))
    images = run_dir.numbered_alike(open_images(source, "validation"), classes)
    highest = int(images.label_N.max())
    named = len(images.class_names)
    if NO_LABEL in images.label_N or highest >= num_classes or named not in (0, num_classes):
        what = f"{named} class folders" if named else f"labels up to {highest}"
        if NO_LABEL in images.label_N:
            what = f"no label for {images.names[int((images.label_N == NO_LABEL).argmax())]!r}"
        raise UsageError(
            f"the validation images of {source} are not labelled with the {num_classes} classes "
            f"of this student: there is {what}. Pass --data with a data set that is; folders may "
            "be named by class number, 0 .. " + f"{num_classes - 1}."
        )
    return images


def _reference(question: Question, subject: Subject) -> Reference | None:
    """The cache the user names, else the run's own; None when that is gone or not wanted."""
    if question.views == 0:
        return None
    if question.cache is not None:
        return _open_reference(question.cache, question, subject)
    own = subject.config["cache"] if subject.config is not None else None
    if isinstance(own, list):
        log.info("this run learned from several caches; --cache names one to look at")
        return None
    if own is None or not ("://" in own or Path(own).exists()):
        return None
    try:
        return _open_reference(own, question, subject)
    except (KdcacheError, OSError) as error:
        log.warning(_LEFT_OUT, error)
        return None


def _open_reference(path: str, question: Question, subject: Subject) -> Reference:
    store, config = open_cache(path), subject.config or {}
    verify.check_replayable(store)
    own, student = config.get("cache_fingerprint"), subject.students[0]
    if question.cache is None and own != store.spec.fingerprint:
        raise CacheMismatch(f"{path} is another one now than the run was trained on.")
    if (classes := store.spec.teacher.num_classes) != student.num_classes:
        raise UsageError(
            f"the cache {path} is of {classes} classes, the student has {student.num_classes}. "
            "Pass --cache with one of the student's classes, or --views 0."
        )
    if not student.takes(size := store.spec.views.size):
        raise UsageError(f"the student does not take this cache's views of {size} px.")
    sources = [config.get("data", ""), store.source, *question.data]
    source = next((s for s in sources if s and ("://" in s or Path(s).exists())), None)
    if source is None:
        raise UsageError(f"the images of {path} are not where they were. Pass --data with them.")
    images = open_images(source, "train")
    return Reference(store, match.match(store.table, store.spec.dataset, images))


def _teacher(
    question: Question, student: Network, reference: Reference | None, wish: Wish
) -> Network | None:
    """The teacher to run, seeing pictures at the size at which it saw the cache's views."""
    if question.teacher is None:
        return None
    size = reference.store.spec.views.for_teacher().size if reference else student.frame.size
    if wish.size:
        size = wish.size
    crop, precision = student.frame.crop, student.feed.precision
    teacher = models.open_teacher(question.teacher, size, crop, precision, wish)
    if teacher.num_classes != student.num_classes:
        raise UsageError(
            f"the teacher {question.teacher} has {teacher.num_classes} classes, the student has "
            f"{student.num_classes}. Pass --teacher with one of the student's classes."
        )
    return teacher
