"""Cohorts as trials of Ray Tune: many GPUs and machines, retries, early stopping.

A trial trains the students of one cohort in the folders of the sweep, which all machines must
reach. Its memory is our checkpoints: a trial whose worker dies is started again by Tune and goes on
where they are, so nothing is trained twice. With ASHA the trials whose best student falls behind
are stopped; their students stay begun, and a later run without ASHA finishes them.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cache_tools import shards
from cache_tools.errors import KdcacheError, UsageError
from train.grid import Student
from train.sweep import Sweep

log = logging.getLogger("kdcache")
RETRIES = 3
"""How often a trial is started again when its worker died."""
_METRIC = "merit"


def check() -> None:
    """Refuse before any work is done when Ray Tune is not there."""
    try:
        importlib.import_module("ray.tune")  # which needs pandas and more, that Ray alone does not
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray Tune. Run: pip install 'kdcache[ray]'. Or leave it out: "
            "cohorts then train one after another here."
        ) from None


def train(sweep: Sweep, planned: Sequence[Sequence[Student]], asha: bool = False) -> None:
    """Train every cohort as a trial; Ray decides where and when.

    Args:
        sweep: The sweep, prepared.
        planned: Its cohorts.
        asha: Whether trials that fall behind are stopped early.

    Raises:
        KdcacheError: A trial failed more often than it is started again.
        KeyboardInterrupt: Tune was interrupted.
    """
    if not planned:
        return
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    epochs = max(student.recipe.epochs for cohort in planned for student in cohort)
    gpu = sweep.device.type == "cuda"
    resources = {"gpu": 1.0} if gpu else {"cpu": 1.0}
    trials = [[_plain(student) for student in cohort] for cohort in planned]
    where = {
        "caches": [store.location for store in sweep.inputs.members.stores],
        "weights": list(sweep.inputs.members.weights),
        "data": shards.resolve(sweep.inputs.source),
        "out": str(sweep.out.resolve()),
        "device": sweep.device.type,
        "also": list(sweep.also),
    }
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, where=where, trials=trials), resources),
        param_space={"cohort": tune.grid_search([*range(len(trials))])},
        tune_config=tune.TuneConfig(
            metric=_METRIC,
            mode="max",
            scheduler=ASHAScheduler(max_t=epochs) if asha else FIFOScheduler(),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(sweep.out.resolve()),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(sys.stderr):  # stdout carries the table
        try:
            results = tuner.fit()
        finally:
            if ours:
                ray.shutdown()
    if not results.errors and not asha and sweep.todo:
        raise KeyboardInterrupt  # Tune ends in peace when it is asked to
    for error in results.errors:
        raise KdcacheError(
            f"a trial of Ray Tune failed {RETRIES + 1} times: {str(error).strip().splitlines()[-1]}"
            f" What is done is kept; {sweep.out / 'ray'} has its log. Run the same command again "
            "to go on."
        )


def _trial(config: dict[str, Any], where: dict[str, Any], trials: list[list[Any]]) -> None:
    """One cohort, in a worker of Ray."""
    from ray import tune

    from train import recipe as recipes
    from train import run
    from train import sweep as sweeps

    students = tuple(
        Student(one["name"], recipes.build(one["recipe"], one["name"]), one["values"])
        for one in trials[config["cohort"]]
    )
    device = torch.device(where["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    inputs = run.open_inputs(where["caches"], where["data"], where["weights"])
    sweep = sweeps.Sweep(students, inputs, Path(where["out"]), device, tuple(where["also"]))

    def told(rows: dict[Path, dict[str, float]]) -> None:
        tune.report({_METRIC: max(row.get("top1", -row["loss"]) for row in rows.values())})

    if not sweep.todo:  # its worker died after the last word
        tune.report({_METRIC: float("-inf")})
    sweeps.train_cohort(sweep, students, told)


def _plain(student: Student) -> dict[str, Any]:
    return {"name": student.name, "recipe": asdict(student.recipe), "values": student.values}
