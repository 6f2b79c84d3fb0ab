"""Import of dense logits, a file of numpy's or safetensors', as a cache.

`targets.logits_file` has the contents of the file. The views of these logits are unknown, so such a
cache cannot be replayed: it serves for inspection, comparison and sharing.

Shapes: V views, N samples, C classes, B rows of a block.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DataError, NonFinite
from cache_tools.runtime import progress
from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import NO_LABEL, DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import UNKNOWN_VIEWS
from cache_tools.store import resume
from cache_tools.store.cache import Cache
from cache_tools.targets import codec, dense, logits_file
from cache_tools.targets.codec import EncodedTargets
from cache_tools.targets.logits_file import Logits
from cache_tools.targets.statistics import part_statistics

BLOCK = 65_536
_ROWS = 1024
"""Rows encoded at a time: a few ten megabytes at 1,000 classes."""


def run(
    path: Path, out: Path, targets: TargetSpec, teacher: str, probabilities: bool = False
) -> Cache:
    """Write the cache, or resume writing it; `probabilities`: the file has these, not logits.

    Raises:
        DataError, NonFinite, UsageError: The file or cache does not fit; committed parts stay.
    """
    logits = logits_file.read(path, probabilities)
    order, table = _table(logits, path)
    spec = _spec(logits, table, targets, teacher)
    store = resume.open_or_create(out, spec, lambda: table, len(logits.values_VNC))
    todo = [part for part in store.parts() if store.check_part(part) is not None]
    rows = sum(len(spec.rows(part.block)) for part in todo)
    with progress.bar("import", rows, "views") as advance:
        for part in todo:
            of_part = order[spec.rows(part.block).start : spec.rows(part.block).stop]
            pieces = []
            for piece in _pieces(logits, part.view, of_part, spec.targets):
                pieces.append(piece)
                advance(len(piece))
            stored, no_probes = codec.concatenate(pieces), np.empty(0, dtype=np.uint64)
            versions = {"numpy": np.__version__}
            store.write(part, stored, no_probes, part_statistics(stored), versions)
    return store


def _pieces(
    logits: Logits, view: int, row_B: NDArray[np.int64], targets: TargetSpec
) -> Iterator[EncodedTargets]:
    for begin in range(0, len(row_B), _ROWS):
        rows = row_B[begin : begin + _ROWS]
        values = logits.rows(view, rows)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise NonFinite(
                f"view {view} of {logits.keys[rows[bad[0]]]!r} in {logits.path} has a logit that "
                "is NaN or infinite. Nothing of this part was stored; compute these logits anew."
            )
        sparse = dense.sparsify(values, targets)
        yield codec.encode(sparse, targets, logits.num_classes)


def _spec(logits: Logits, table: SampleTable, targets: TargetSpec, teacher: str) -> CacheSpec:
    labelled = NO_LABEL not in table.label_N
    dataset = DatasetSpec(
        num_samples=len(table),
        num_classes=logits.num_classes if labelled else 0,
        labels=labelled,
        key="stem",
        table_sha256=table.sha256,
    )
    unknown = TeacherSpec(teacher, "", "", logits.num_classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    k = min(targets.k_max, logits.num_classes)
    targets = replace(targets, k_max=k, k_min=min(targets.k_min, k))
    block = min(BLOCK, len(table))
    return CacheSpec(dataset, unknown, UNKNOWN_VIEWS, targets, block, renderer="none")


def _table(logits: Logits, path: Path) -> tuple[NDArray[np.int64], SampleTable]:
    """Return the order of the rows by sample id, and the sample table without image data."""
    ids = np.array([sample_table.sample_id(key) for key in logits.keys], dtype=np.uint64)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any():
        raise DataError(f"a key occurs twice in {path}. Every row needs a unique key.")
    keys = [logits.keys[i] for i in order]
    sample_table.check_keys(keys)
    return order, sample_table.of_keys(keys, logits.label_N[order])
