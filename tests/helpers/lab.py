"""A lab whose teacher costs nothing: what it says depends on sample and view alone."""

from pathlib import Path

import numpy as np

from cache_tools.combine import assemble
from cache_tools.spec import sample_table
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.dataset import DatasetSpec
from cache_tools.spec.sample_table import SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense

CLASSES = 40
TEACHER = TeacherSpec("sage", "oracle", "sha256:0", CLASSES, (0.5,) * 3, (0.25,) * 3)
THRESHOLD = TargetSpec(16, 0.01, 1, 127, (1.0, 4.0), true_class=True, tail_square=True)
FIXED = TargetSpec(12, 0.0, 12, 127, (1.0, 2.0))


def keys(count: int) -> list[str]:
    return [f"photo-{i:04d}" for i in range(count)]


def table(names: list[str]) -> SampleTable:
    """Of the named samples, whose every column follows from the name."""
    names = sorted(names, key=sample_table.sample_id)
    id_N = np.array([sample_table.sample_id(name) for name in names], dtype=np.uint64)
    label, side = (id_N % CLASSES).astype("i4"), (id_N % 97 + 40).astype("i4")
    return SampleTable(tuple(names), id_N, id_N ^ 7, label, side, side, side.astype("i8") * 100)


def logits(id_N: np.ndarray, view: int) -> np.ndarray:
    rows = [np.random.default_rng([int(i), view]).standard_normal(CLASSES) for i in id_N]
    return (3 * np.stack(rows)).astype("f4")


def spec(
    names: SampleTable, block: int = 32, mixup: float = 0.0, targets: TargetSpec = THRESHOLD
) -> CacheSpec:
    dataset = DatasetSpec(len(names), CLASSES, True, "stem", names.sha256)
    views = ViewSpec(32, mixup=mixup)
    return CacheSpec(dataset, TEACHER, views, targets, min(block, len(names)), 16)


def build(out: Path, names: list[str], views: range, **how: object) -> Cache:
    """The cache that the teacher writes of some samples and views."""
    known = table(names)
    store = Cache.create(out, spec(known, **how), known, views.stop)  # type: ignore[arg-type]
    for part in store.parts():
        if part.view in views:
            write(store, part)
    return store


def write(store: Cache, part: Part, versions: str = "1", shift: float = 0.0) -> None:
    """Ask the teacher about one part; `shift` is a teacher of another mind."""
    rows, known = store.spec.rows(part.block), store.table
    here = slice(rows.start, rows.stop)
    values = logits(known.id_N[here], part.view) + shift * np.arange(CLASSES, dtype="f4")
    label = known.label_N[here].astype(np.int64)
    both = np.stack([label, (label + 1) % CLASSES], axis=1)[:, : 1 + store.spec.views.mixes]
    sparse = dense.sparsify(values, store.spec.targets, both)
    stored = codec.encode(sparse, store.spec.targets, CLASSES)
    pixels = known.id_N[probe_numbers(rows)] ^ np.uint64(part.view + 1)
    facts = assemble.statistics(store, part, stored)
    store.write(part, stored, pixels, facts, {"sage": versions})
