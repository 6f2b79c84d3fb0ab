"""Content of a cache that an import has written, and a student that trains from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def opened(out: Path, folder: Path) -> tuple[Cache, ImageDataset]:
    store = Cache.open(out)
    images = open_images(str(folder / "photos"), "train")
    return store, match.match(store.table, store.spec.dataset, images)


def stored_probabilities(store: Cache, key: str, view: int) -> tuple[dict[int, float], float]:
    """Classes with probabilities and the mass of all others, as the cache has them."""
    row = store.table.keys.index(key)
    targets = codec.decode(store.read(Part(view, 0))[0], store.spec.targets, np.array([row]))
    kept = targets.probability_BK[0] > 0
    pairs = zip(targets.index_BK[0][kept].tolist(), targets.probability_BK[0][kept], strict=True)
    return dict(pairs), float(targets.tail_BT[0, 0])


def trains(out: Path, folder: Path, tmp_path: Path, kdcache: Command) -> Outcome:
    """Two steps of a student, as its users take them."""
    return kdcache(
        "train", "digits", "--cache", out, "--data", folder / "photos", "--out", tmp_path / "run",
        "epochs=1", "views_per_epoch=2", "batch_size=12", "temperature=1.0", "threads=1",
    )  # fmt: skip
