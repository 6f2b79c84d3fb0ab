"""Sample of a teacher's logits: of a file, or computed again by the teacher of a cache.

Shapes: B views, C classes, P labels of a view: its own, and its partner's where views are mixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache_tools.data import match
from cache_tools.errors import NonFinite, UsageError
from cache_tools.numerics.array_types import F4, F8, I8
from cache_tools.runtime.plugins import Plugin
from cache_tools.store.cache import Cache
from cache_tools.store.sampling import spread
from cache_tools.targets import logits_file

LOGITS: Plugin[Callable[..., tuple[F4, I8, I8, F8]]] = Plugin(
    "kdcache.checks", "logits", "run a teacher again"
)


@dataclass(frozen=True)
class Sample:
    """Logits of some views."""

    logits_BC: F4
    """Finite."""
    row_B: I8
    """Number of the sample of each view."""
    label_BP: I8
    """Labels; the most probable class where there is none."""
    lam_B: F8
    """Own share of each view, 0..1."""
    of: int
    """Views that the sample was taken from."""


def of_file(path: Path, count: int, probabilities: bool = False) -> Sample:
    """Read `count` rows of a file of dense logits, spread evenly.

    Raises:
        DataError, UsageError, NonFinite: As `logits_file.read`, or a logit is NaN or infinite.
    """
    logits = logits_file.read(path, probabilities)
    views, samples = logits.values_VNC.shape[:2]
    view_B, row_B = spread(views, samples, count)
    values_BC = np.empty((len(row_B), logits.num_classes), np.float32)
    for view in np.unique(view_B).tolist():
        values_BC[view_B == view] = logits.rows(view, row_B[view_B == view])
    label_B1 = logits.label_N[row_B].astype(np.int64)[:, None]
    return _checked(values_BC, row_B, label_B1, np.ones(len(row_B)), views * samples, str(path))


def of_cache(
    store: Cache,
    count: int,
    data: str | None,
    teachers: Sequence[str],
    class_maps: Sequence[str],
    device: str | None,
) -> Sample:
    """Run the teacher of a cache on `count` of its views, whose samples are spread evenly.

    `data`: the images; None: where the cache was made from.

    Raises:
        UsageError, CacheMismatch: There are no images, or they or the teacher are others.
    """
    if not (source := data or store.source):
        raise UsageError(f"where are the images of {store.name}? Pass --data with their folder.")
    images = match.open_unordered(store.table, store.spec.dataset, source)
    values_BC, row_B, label_B2, lam_B = LOGITS.load()(
        store, images, teachers, device, count, class_maps
    )
    label_BP = label_B2[:, : 1 + store.spec.views.mixes]
    total = store.num_views * store.spec.dataset.num_samples
    return _checked(values_BC, row_B, label_BP, lam_B, total, f"the teacher of {store.name}")


def _checked(values_BC: F4, row_B: I8, label_BP: I8, lam_B: F8, of: int, where: str) -> Sample:
    """Refuse logits that are not finite; fill in missing labels."""
    bad = np.flatnonzero(~np.isfinite(values_BC).all(axis=1))
    if len(bad):
        raise NonFinite(
            f"a logit of sample {row_B[bad[0]]} of {where} is NaN or infinite. Compute it anew."
        )
    known_BP = np.where(label_BP < 0, values_BC.argmax(axis=1)[:, None], label_BP)
    return Sample(values_BC, row_B, known_BP, lam_B, of)
