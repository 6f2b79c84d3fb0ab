"""One run: its folder, its identity, its result.

    RUN/config.json      resolved recipe, cache, data, fingerprint: what `eval` and a rerun go by
    RUN/log.jsonl        a row of metrics per epoch; steps.jsonl, tensorboard/: see `trainer.log`
    RUN/checkpoint.pt    where to go on; removed when the run is finished
    RUN/model/           the student as timm saves it: timm.create_model("local-dir:RUN/model")
    RUN/model-ema/       its moving average, when the recipe has one
    RUN/result.json      written last: the run is finished when this exists

Running the same command again goes on, or finds the run finished. Another recipe or cache in the
same folder is refused unless `--fresh` says to begin anew.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.data import match
from cache_tools.data.images import Images
from cache_tools.data.match import Coverage
from cache_tools.data.open import has_split, open_images, resolve
from cache_tools.errors import CacheMismatch, CacheNotFound, UsageError
from cache_tools.spec.canonical import canonical_json, difference, sha256
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.storage import atomic
from cache_tools.store.aligned import Members, open_members
from cache_tools.store.cache import Cache
from cache_tools.verify import verify
from train.recipe import TrainRecipe

_FREE = ("threads", "loader", "checkpoint_minutes", "cache_recipe", "min_views")  # change no result


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    members: Members
    """The cache, or several whose mixture is learned."""
    images: Images
    """Its data set, in the order of its sample table."""
    validation: Images | None
    """Labelled pictures to measure on, when the data set has them."""
    source: str
    """Where the data set lies."""
    coverage: Coverage
    """Which of the cache's samples it has."""

    @property
    def present_N(self) -> NDArray[np.bool_]:
        """[N] which samples can be shown."""
        return self.coverage.present_N

    @property
    def store(self) -> Cache:
        """The cache to ask about samples and views: the same in all of them."""
        return self.members.first

    @property
    def fingerprint(self) -> str:
        """What result.json names: the fingerprint of the cache, or of all with their weights."""
        if len(self.members.stores) == 1:
            return self.store.spec.fingerprint
        return sha256(canonical_json(self.shares))

    @property
    def shares(self) -> dict[str, float]:
        """Fingerprint of each cache → its weight."""
        return {member.cache: member.weight for member in self.members.specs}

    def num_views(self, recipe: TrainRecipe) -> int:
        """Views of a sample that a run shows: the recipe's, or all that there are."""
        return recipe.num_views or self.members.num_views

    @property
    def num_classes(self) -> int:
        """Length of the student's logits."""
        return self.store.spec.teacher.num_classes


def open_inputs(
    cache: str | Path | Sequence[str | Path],
    data: str | None,
    weights: Sequence[float] | None = None,
    partial: bool = False,
) -> Inputs:
    """Open a cache, or several that are to be mixed, and their data set.

    Args:
        cache: Folder, zip or URL of the cache, or of each.
        data: The data set; None takes the place the cache was made from on this machine.
        weights: How much each cache counts; None: all alike.
        partial: Whether to train on those samples that the data set has.

    Raises:
        CacheMismatch: The caches are not of the same views, or not of these images.
    """
    members = open_members([cache] if isinstance(cache, str | Path) else cache, weights)
    store = members.first
    verify.check_replayable(store)
    source = data or members.source
    if not source:
        raise UsageError(f"where are the images of {store.name}? Pass --data with their folder.")
    opened = open_images(source, "train")
    images, covered = match.join(store.table, store.spec.dataset, opened, partial)
    validation = _validation(source, store, images.class_names)
    return Inputs(members, images, validation, source, covered)


def begin(folder: Path, recipe: TrainRecipe, inputs: Inputs, fresh: bool) -> dict[str, Any] | None:
    """Prepare the folder of a run; its result when it is finished already.

    Raises:
        UsageError: Another run lies there.
    """
    if fresh and (folder / "config.json").is_file():
        shutil.rmtree(folder)
    config = _config(recipe, inputs)
    if (folder / "config.json").is_file():
        _refuse_other(folder, config)
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no run. Choose another --out.")
    write_json(folder / "config.json", config)
    finished = (folder / "result.json").is_file()
    return read_json(folder / "result.json") if finished else None


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run; CacheNotFound when there is none."""
    if not (folder / "config.json").is_file():
        several = ", ".join(sorted(path.parent.name for path in folder.glob("*/result.json")))
        now = (
            f"Name one of those in it: {several}."
            if several
            else "Make one with: kdcache train RECIPE …"
        )
        raise CacheNotFound(f"there is no run at {folder}. {now}")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}). Pass --fresh to begin anew.") from None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs."""
    atomic.write(path, (json.dumps(value, indent=2) + "\n").encode())


def accuracies(folder: Path) -> dict[str, dict[str, float | None]]:
    """Top-1 and top-5, in percent, of all weights of a finished run, by their folders' names."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = {"model": _accuracy(rows[-1], ""), "model-ema": _accuracy(rows[-1], "_ema")}
    both = [_accuracy(row, ema) for row in rows for ema in ("", "_ema")]
    measured = [one for one in both if one["top1"] is not None]
    if measured:  # the first of the highest: max takes it, and so did the loop
        found["model-best"] = max(measured, key=lambda one: one["top1"] or 0.0)
    return {name: found[name] for name in found if (folder / name).is_dir()}


def _accuracy(row: dict[str, float], suffix: str) -> dict[str, float | None]:
    return {name: row.get(f"{name}{suffix}") for name in ("top1", "top5")}


def _config(recipe: TrainRecipe, inputs: Inputs) -> dict[str, Any]:
    spec = inputs.store.spec
    paths = [store.location for store in inputs.members.stores]
    config: dict[str, Any] = {
        "recipe": asdict(recipe),
        "cache_fingerprint": inputs.fingerprint,
        "num_views": inputs.num_views(recipe),
        "view_size": spec.views.size,
        "cache": paths[0],
        "data": resolve(inputs.source),
        "teacher": asdict(spec.teacher),
        "views": asdict(spec.views),
        "samples": inputs.coverage.found,
        "class_names": list(inputs.images.class_names) if spec.dataset.labels else [],
        "validation_images": len(inputs.validation) if inputs.validation is not None else 0,
    }
    if inputs.coverage.missing:
        config["coverage"] = inputs.coverage.facts
    if len(paths) == 1:
        return config
    names = " + ".join(store.spec.teacher.name for store in inputs.members.stores)
    teachers = {**config["teacher"], "name": names}
    return {**config, "cache": paths, "weights": inputs.shares, "teacher": teachers}


def _refuse_other(folder: Path, config: dict[str, Any]) -> None:
    def identity(value: dict[str, Any]) -> dict[str, Any]:
        recipe = {k: v for k, v in value["recipe"].items() if k not in _FREE}
        rest = {"recipe": recipe, "num_views": value["num_views"]}
        rest |= {"missing": value.get("coverage", {}).get("missing", 0)}
        if "weights" in value:  # says more than the fingerprint of all together
            return {**rest, "weights": value["weights"]}
        return {**rest, "cache_fingerprint": value["cache_fingerprint"]}

    there = read_json(folder / "config.json")
    if found := difference(identity(there), identity(config)):
        raise UsageError(
            f"{folder} holds another run: {found} now. Choose another --out, or pass --fresh to "
            "replace it."
        )


def _validation(source: str, store: Cache, classes: tuple[str, ...]) -> Images | None:
    """The labelled validation split, or None when there is none of the teacher's classes."""
    if not store.spec.dataset.labels or not has_split(source, "validation"):
        return None
    images = open_images(source, "validation")
    if NO_LABEL in images.label_N:
        return None
    if int(images.label_N.max()) >= store.spec.teacher.num_classes:
        raise CacheMismatch(
            f"the validation labels of {source} go up to {images.label_N.max()}, the cache has "
            f"{store.spec.teacher.num_classes} classes. Point --data at the original data set."
        )
    return numbered_alike(images, classes)


def numbered_alike(images: Images, classes: tuple[str, ...]) -> Images:
    """The validation images with the numbers that the training split gives the class folders."""
    if not classes or not images.class_names or images.class_names == classes:
        return images
    if strange := sorted({*images.class_names} - {*classes}):
        raise CacheMismatch(
            f"the validation split of {images.source} has the class folder {strange[0]!r}, the "
            "training split has not. Point --data at a data set whose splits have the same classes."
        )
    number = np.array([classes.index(name) for name in images.class_names])
    label = number[images.label_N].astype(images.label_N.dtype)
    return replace(images, label_N=label, class_names=classes)
