"""Export as TinyViT's saved logits, which TinyViT's own loader reads (`importers.tinyvit`).

    OUT/logits_top{K}_epoch{V}/rank0-keys.txt, rank0-values.bin

A record always has K classes: if a view keeps fewer, others follow with their flat share of the
tail. Probabilities are rounded down to half precision, so that the mass of
the rest is never negative.

Shapes: R views, K classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import UsageError
from cache_tools.exporters import base
from cache_tools.importers.tinyvit import MOST_CLASSES, record
from cache_tools.storage import seal
from cache_tools.store.cache import Cache

VALUES, KEYS = "rank0-values.bin", "rank0-keys.txt"


def names(store: Cache, without_seeds: bool) -> dict[str, range]:
    """Return the files of records, a view each, and the rows of the table in them.

    Raises:
        UsageError: TinyViT's format cannot represent this cache.
    """
    if store.spec.teacher.num_classes > MOST_CLASSES:
        raise UsageError(
            f"TinyViT's class ids end at {MOST_CLASSES}, {store.name} has "
            f"{store.spec.teacher.num_classes} classes. Use --to webdataset or parquet."
        )
    if not without_seeds and not (store.spec.imported and store.spec.imported.seeds):
        raise UsageError(
            f"the views of {store.name} have no seeds of TinyViT's: its loader would draw other "
            "views than those of the soft labels. Use --to webdataset or parquet; or pass "
            "--without-seeds for a reader of your own (all seeds are then 0)."
        )
    kept, rows = store.spec.targets.k_max, range(store.spec.dataset.num_samples)
    return {f"logits_top{kept}_epoch{view}/{VALUES}": rows for view in range(store.num_views)}


def write(store: Cache, out: Path, todo: dict[str, range], keys: Sequence[str]) -> Iterator[int]:
    """Write epochs, TinyViT's key of each row of the table first; yield the views of each."""
    lines = "".join(f"{key}\n" for key in keys).encode()
    for name in todo:
        view = int(name.partition("/")[0].rpartition("epoch")[2])
        parts = [_records(base.one(store, b, view), store) for b in range(store.spec.num_blocks)]
        seal.write(out, name.replace(VALUES, KEYS), lines, base.DIGESTS)
        seal.write(out, name, np.concatenate(parts).tobytes(), base.DIGESTS)
        yield len(keys)


def _records(targets: base.Arrays, store: Cache) -> NDArray[np.void]:
    kept, classes = store.spec.targets.k_max, store.spec.teacher.num_classes
    index_RK, p_RK = targets["index"].astype(np.int64), targets["probability"].astype(np.float64)
    count_R, tail_R = targets["count"], targets["tail"][:, 0].astype(np.float64)
    # unused slots get the lowest unnamed classes and their shares of the tail
    for row in np.flatnonzero(count_R < index_RK.shape[1]).tolist():
        count = int(count_R[row])
        used = set(index_RK[row, :count].tolist())
        free = (c for c in range(classes) if c not in used)
        index_RK[row, count:] = [next(free) for _ in range(index_RK.shape[1] - count)]
        p_RK[row, count:] = tail_R[row] / (classes - count)
        order = np.argsort(-p_RK[row], kind="stable")
        index_RK[row], p_RK[row] = index_RK[row, order], p_RK[row, order]
    half_RK = p_RK.astype("<f2")
    half_RK = np.where(half_RK > p_RK, np.nextafter(half_RK, np.float16(0)), half_RK)
    records = np.zeros(len(index_RK), dtype=record(kept))
    records["index"], records["p"] = index_RK, half_RK
    if "seed" in targets:
        records["seed"] = targets["seed"]
    return records
