"""`kdcache diff`: how far apart are two caches, or a cache and the logits it was made from?

Both sides are brought back to distributions over all classes and joined by key: mean and 99th
percentile of KL(A ‖ B) at T = 1 and 2, mean L1 distance, how often the best class is the same, and
bytes per view of each. Logits on the left against a cache on the right give what its codec lost.

Shapes: N samples, B rows, C classes.
"""

from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CacheMismatch
from cache_tools.numerics.array_types import F8
from cache_tools.runtime import progress
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense, logits_file
from cache_tools.targets.codec import EncodedTargets

TEMPERATURES = (1.0, 2.0)
LIMIT = 50_000
_ROWS, _VALUES = 1024, 2**23
"""Most rows, and probabilities in them, that are compared at a time."""


class OfCache:
    """A cache; blocks are read one after the other and the last one is kept."""

    def __init__(self, store: Cache) -> None:
        self._store = store
        self.name, self.keys = store.name, store.table.keys
        self.num_views, self.num_classes = store.num_views, store.spec.teacher.num_classes
        self._last: tuple[Part, EncodedTargets] | None = None

    def distributions(self, view: int, row_B: NDArray[np.int64], temperature: float) -> F8:
        """[B, C] distributions of some samples in one view."""
        spec, out = self._store.spec, np.empty((len(row_B), self.num_classes))
        for block in np.unique(row_B // spec.block_size).tolist():
            here, part = row_B // spec.block_size == block, Part(view, block)
            if self._last is None or self._last[0] != part:
                self._last = part, self._store.read(part)[0]
            at = row_B[here] - block * spec.block_size
            targets = codec.decode(self._last[1], spec.targets, at)
            out[here] = dense.densify(targets, spec.targets, self.num_classes, temperature)
        return out

    def bytes_per_view(self) -> float:
        """Bytes of a view on disk, without the sample table."""
        return float(info.info(self._store)["bytes_per_view"] or 0.0)


class OfLogits:
    """A file of dense logits."""

    def __init__(self, path: Path) -> None:
        self._logits = logits_file.read(path)
        self.name, self.keys = str(path), self._logits.keys
        self.num_views, self.num_classes = len(self._logits.values_VNC), self._logits.num_classes

    def distributions(self, view: int, row_B: NDArray[np.int64], temperature: float) -> F8:
        """As `OfCache.distributions`."""
        return dense.softmax(self._logits.rows(view, row_B), temperature)

    def bytes_per_view(self) -> float:
        """Bytes of the numbers of a view."""
        return float(self.num_classes * self._logits.values_VNC.itemsize)


Side = OfCache | OfLogits
"""One of the two things that are compared."""


def open_side(where: str) -> Side:
    """Open a cache, or a file of logits by its suffix."""
    if where.endswith(logits_file.SUFFIXES):
        return OfLogits(Path(where))
    return OfCache(Cache.open(where))


def diff(a: Side, b: Side, limit: int = LIMIT) -> dict[str, Any]:
    """Compare two sides on the views they share.

    At most `limit` views are compared, spread evenly; 0: all. `a` is the reference.

    Raises:
        CacheMismatch: They have no sample in common, or other classes.
    """
    rows = _shared(a, b)
    views = min(a.num_views, b.num_views)
    every = max(1, -(-len(rows[0]) * views // limit)) if limit else 1
    rows = rows[:, ::every]
    step = max(1, min(_ROWS, _VALUES // a.num_classes))
    measured: dict[str, list[F8]] = defaultdict(list)
    with progress.bar("compare", views * rows.shape[1], "views") as advance:
        for view, begin in product(range(views), range(0, rows.shape[1], step)):
            row_a, row_b = rows[:, begin : begin + step]
            for t in TEMPERATURES:
                p, q = a.distributions(view, row_a, t), b.distributions(view, row_b, t)
                measured[f"kl_t{t:g}"].append(dense.kl_divergence(p, q))
                if t == 1:
                    measured["l1"].append(np.abs(p - q).sum(axis=1))
                    agree_B = p.argmax(axis=1) == q.argmax(axis=1)
                    measured["agree"].append(agree_B.astype(np.float64))
            advance(len(row_a))
    columns = {name: np.concatenate(values) for name, values in measured.items()}
    facts: dict[str, Any] = {"a": a.name, "b": b.name, "compared": len(columns["l1"])}
    facts |= {"samples_shared": len(rows[0]) if every == 1 else len(_shared(a, b)[0])}
    for t in TEMPERATURES:
        values = columns[f"kl_t{t:g}"]
        facts |= {f"kl_t{t:g}_mean": float(values.mean())}
        facts |= {f"kl_t{t:g}_p99": float(np.percentile(values, 99))}
    facts |= {"l1_mean": float(columns["l1"].mean())}
    facts |= {"top1_agreement": 100.0 * float(columns["agree"].mean())}
    return facts | {"bytes_per_view": {"a": a.bytes_per_view(), "b": b.bytes_per_view()}}


def _shared(a: Side, b: Side) -> NDArray[np.int64]:
    """[2, N] rows of both sides that have the same key, in the order of b's."""
    if a.num_classes != b.num_classes:
        raise CacheMismatch(f"{a.name} has {a.num_classes} classes, {b.name} has {b.num_classes}.")
    place = {key: i for i, key in enumerate(a.keys)}
    pairs = [(place[key], i) for i, key in enumerate(b.keys) if key in place]
    if not pairs:
        raise CacheMismatch(
            f"{a.name} and {b.name} share no sample (keys such as {a.keys[0]!r} and {b.keys[0]!r})."
        )
    return np.array(pairs, dtype=np.int64).T
