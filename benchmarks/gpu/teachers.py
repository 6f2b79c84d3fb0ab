"""Speed of stage 1 on a GPU, as a share of the bare teacher's."""

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import stage1
from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.workbench import Figures, Workbench
from benchmarks.stage1 import Case, Cost

ROUNDS = 5
DECODE = 4
"""Views per decode."""
SECONDS = 2.5
"""Length of a turn of the bare teacher's speed."""


def measure(bench: Workbench, allowance: Allowance, case: Case) -> Figures:
    """Bare teacher, renderer and pipeline in rounds; the first turn of each warms up."""
    case = replace(case, batch=min(case.batch, bench.batch))
    rounds = 2 if bench.short else ROUNDS
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        made = stage1.Bench(case, bench.device, Path(folder), rounds + 1, bench.encoded)
        made.views = DECODE
        made.bare()
        if not bench.short:
            made.views = turn_length(1 / made.bare().wall, case)
        worker = made.worker()
        field: dict[str, Callable[[], Cost]] = {
            "bare": made.bare,
            f"render {DECODE}": lambda: made.render(worker, DECODE),
            f"pipeline {DECODE}": lambda: made.pipeline(worker, DECODE),
        }
        for name in list(field)[1:]:
            field[name]()
        costs = allowance.turns(field, rounds)
        worker.close()
    facts: Figures = {"forward pass": made.forward.how, "rounds": len(costs["bare"])}
    facts |= {"views of a turn": made.views * case.samples, "batch": case.batch}
    found = facts | stage1.summary(case, bench.device, costs)
    if "bars" in found and not bound_by_teacher(costs):
        of_limit = found[f"{DECODE} views per decode"]["of limit, wall"]["median"]
        goal = f"pipeline / renderer, the bottleneck here, at least {stage1.GOAL}, wall time"
        found["bars"] = {goal: of_limit >= stage1.GOAL}
    return found


def bound_by_teacher(costs: dict[str, list[Cost]]) -> bool:
    """Return True if a view costs the teacher more time than the renderer."""
    bare, render = (
        statistics.median(cost.wall for cost in costs[name])
        for name in ("bare", f"render {DECODE}")
    )
    return bare >= render


def turn_length(rate: float, case: Case) -> int:
    """Views of each picture in a turn of some seconds, a multiple of those per decode."""
    groups = math.ceil(SECONDS * rate / case.samples / DECODE)
    return min(max(groups, 1) * DECODE, case.views)
