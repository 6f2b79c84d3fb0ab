"""Cost of a cached run's loader beside the pixels: parameters, order and pairs, targets.

Measured on a synthetic cache of a whole block (65,536 samples, A2 with mixing, K = 20 classes kept
of every view), since small data sets share an epoch's fixed costs among few views.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import scale
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.views import draw
from train.data.prefetch import View
from train.data.schedule import Schedule
from train.data.stored_targets import StoredTargets

BATCH, BLOCK = 256, 65_536
A2 = ViewSpec(size=224, interpolation="box", auto_augment="rand-m7-mstd0.5", mixup=0.1, cutmix=1.0)
K20 = TargetSpec(k_max=20, tau=0.0)


def seconds(folder: Path) -> dict[str, float]:
    """CPU seconds per view of all that is not pixels."""
    store = scale.build(folder, BLOCK, 2, A2, K20)
    table, spec = store.table, store.spec
    schedule = Schedule(store, 1, BATCH, 0)
    targets = StoredTargets(CacheEnsemble((store,), (1.0,)))
    stored, plan = store.read_view(0), schedule.plan(0)
    drawn = draw.draw(spec.views, table.id_N, table.height_N, table.width_N, 0)
    loaded, steps = [View(0, (stored,), drawn)], iter(range(10**9))
    label = table.label_N[: 2 * BATCH].astype(np.int64).reshape(-1, 2)

    def look_up() -> None:
        step = next(steps) % schedule.steps
        part = slice(step * BATCH, (step + 1) * BATCH)
        targets.decode(loaded, plan.slot_M[part], plan.row_M[part], label)

    columns = table.id_N, table.height_N, table.width_N
    return {
        "parameters": _each(lambda: draw.draw(spec.views, *columns, 1), len(table)),
        "order and pairs": _each(lambda: schedule.plan(1), len(table)),
        "reading targets": _each(lambda: store.read_view(1), len(table)),
        "target lookup": _each(look_up, BATCH, 200),
    }


def _each(call: Callable[[], object], count: int, times: int = 5) -> float:
    """Median CPU seconds of a call, per view."""
    seconds = []
    for _ in range(times + 1):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds[1:]) / count
