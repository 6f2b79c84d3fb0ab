"""Source of a contact sheet: views of a cache, and the teacher's top classes of each.

Shapes: N samples.
"""

import logging
from dataclasses import dataclass

import numpy as np

from cache_tools.data import match
from cache_tools.errors import UsageError
from cache_tools.report.contact_sheet import TopClasses, ViewSource
from cache_tools.spec import class_names
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.verify import probes

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class SheetSource:
    """Views and their top classes."""

    views: ViewSource
    num_views: int
    top_classes: TopClasses | None


def of_cache(store: Cache, data: str, size: int = 0) -> SheetSource:
    """Open a cache with its images, at `data` or, if that is "", at the recorded location.

    Views have `size` pixels a side; 0: as the teacher's input.

    Raises:
        UsageError, CacheMismatch: No images are found, or those of another cache, or no views of
            another size.
    """
    probes.check_replayable(store)
    source_path = data or store.source
    if not source_path:
        raise UsageError(
            f"the location of the images of {store.name} is unknown. Pass --data with their folder."
        )
    images, _ = match.open_aligned(store.table, store.spec.dataset, source_path)
    spec = view_params.at_size(store, size) if size else store.spec.views.for_teacher()
    source = ViewSource(images, spec, store.spec.window, store)
    missing: set[Part] = set()
    named = images.class_names if store.spec.dataset.labels else ()
    named = named or class_names.of_cache(store.spec)
    names = class_names.names(named, store.spec.teacher.num_classes)

    def top_classes(row: int, view: int) -> list[tuple[str, float]]:
        part = Part(view, row // store.spec.block_size)
        if store.storage.size(part.record) is None:
            if part not in missing:
                log.warning("%s of %s is not made: its views have no classes", part, store.name)
            missing.add(part)
            return []
        at = row % store.spec.block_size
        target = codec.decode(store.read(part)[0], store.spec.targets, np.array([at]))
        p, index = target.probability_BK[0], target.index_BK[0]
        best = np.argsort(-p)[:3]
        return [(names(int(index[i])), float(p[i])) for i in best if p[i] > 0]

    return SheetSource(source, store.num_views, top_classes)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` evenly spaced numbers below `count`."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
