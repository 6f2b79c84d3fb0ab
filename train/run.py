"""One run: its folder, its identity, its result.

    RUN/config.json      resolved recipe, cache, data, fingerprint: what `eval` and a rerun go by
    RUN/log.jsonl        a row of metrics per epoch
    RUN/checkpoint.pt    where to go on; removed when the run is finished
    RUN/model/           the student as timm saves it: timm.create_model("local-dir:RUN/model")
    RUN/model-ema/       its moving average, when the recipe has one
    RUN/result.json      written last: the run is finished when this exists

Running the same command again goes on, or finds the run finished. Another recipe or cache in the
same folder is refused unless `--fresh` says to begin anew.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_tools import files, samples, shards, verify
from cache_tools.errors import CacheMismatch, CacheNotFound, UsageError
from cache_tools.shards import NO_LABEL, Images
from cache_tools.spec import difference
from cache_tools.store import Store
from train.recipe import TrainRecipe

_FREE = ("threads", "checkpoint_minutes")  # keys that change no result


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    store: Store
    """The cache."""
    images: Images
    """Its data set, in the order of its sample table."""
    validation: Images | None
    """Labelled pictures to measure on, when the data set has them."""
    source: str
    """Where the data set lies."""

    @property
    def num_classes(self) -> int:
        """Length of the student's logits."""
        return self.store.spec.teacher.num_classes


def open_inputs(cache: Path, data: str | None) -> Inputs:
    """Open a cache and its data set.

    Args:
        cache: Folder of the cache.
        data: The data set; None takes the place the cache was made from on this machine.
    """
    store = Store.open(cache)
    verify.check_replayable(store)
    source = data or store.source
    if not source:
        raise UsageError(f"where are the images of {cache}? Pass --data with their folder.")
    images = samples.match(store.table, store.spec.dataset, shards.open_images(source, "train"))
    return Inputs(store, images, _validation(source, store), source)


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
        if (folder / "result.json").is_file():
            return read_json(folder / "result.json")
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no run. Choose another --out.")
    write_json(folder / "config.json", config)
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run; CacheNotFound when there is none."""
    if not (folder / "config.json").is_file():
        raise CacheNotFound(f"there is no run at {folder}. Make one with: kdcache train RECIPE …")
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
    files.write(path, (json.dumps(value, indent=2) + "\n").encode())


def _config(recipe: TrainRecipe, inputs: Inputs) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "cache_fingerprint": inputs.store.spec.fingerprint,
        "num_views": inputs.store.num_views,
        "view_size": inputs.store.spec.views.size,
        "cache": str(inputs.store.path.resolve()),
        "data": str(Path(inputs.source).resolve()),
    }


def _refuse_other(folder: Path, config: dict[str, Any]) -> None:
    def identity(value: dict[str, Any]) -> dict[str, Any]:
        recipe = {k: v for k, v in value["recipe"].items() if k not in _FREE}
        fingerprint, views = value["cache_fingerprint"], value["num_views"]
        return {"recipe": recipe, "cache_fingerprint": fingerprint, "num_views": views}

    there = read_json(folder / "config.json")
    if found := difference(identity(there), identity(config)):
        raise UsageError(
            f"{folder} holds another run: {found} now. Choose another --out, or pass --fresh to "
            "replace it."
        )


def _validation(source: str, store: Store) -> Images | None:
    """The labelled validation split, or None when there is none of the teacher's classes."""
    if not store.spec.dataset.labels or not shards.has_split(source, "validation"):
        return None
    images = shards.open_images(source, "validation")
    if NO_LABEL in images.label_N:
        return None
    if int(images.label_N.max()) >= store.spec.teacher.num_classes:
        raise CacheMismatch(
            f"the validation labels of {source} go up to {images.label_N.max()}, the cache has "
            f"{store.spec.teacher.num_classes} classes. Point --data at the original data set."
        )
    return images
