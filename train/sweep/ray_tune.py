"""Cohorts as trials of Ray Tune: many GPUs and machines, retries, early stopping.

A trial trains the students of one cohort in the folders of the sweep, which all machines must
reach. Its state is our checkpoints: Tune restarts a trial whose worker died, and it resumes from
them, so nothing is trained twice. With ASHA the trials whose best student falls behind are stopped;
their students keep their checkpoints, and a later run without ASHA finishes them.
"""

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cache_tools.data.sources import absolute
from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import logs, ray_cluster, threads
from cache_tools.runtime.secrets import redact
from cache_tools.storage import system_errors
from train.sweep import runner
from train.sweep.grid import Student
from train.sweep.runner import Sweep

log = logging.getLogger("kdcache")
RETRIES = 3
"""Restarts of a trial after its worker died."""
_METRIC, _EPOCH = "score", "epoch"


def check() -> None:
    """Raise UsageError before any work if Ray Tune is not installed."""
    try:
        importlib.import_module("ray.tune")  # which needs pandas and more, that Ray alone does not
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray Tune. Run: pip install 'kdcache[ray]'. Or leave it out: "
            "cohorts then train one after another here."
        ) from None


def train(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    """Train every cohort as a trial, scheduled by Ray.

    Raises:
        UsageError: There is no cluster at RAY_ADDRESS.
        KdcacheError: A trial failed more often than it is restarted.
        KeyboardInterrupt: Tune was interrupted.
    """
    if not planned:
        return
    import ray

    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # tracebacks, which its files have
    # stdout carries the table
    with _cluster(ray), contextlib.redirect_stdout(sys.stderr), ray_cluster.watched(ray):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = sweep.device.type == "cuda"
        results = _tuner(sweep, planned, gpu, cores(nodes, len(planned), gpu)).fit()
    for error in results.errors:
        *_, reason = str(getattr(error, "cause", None) or error).strip().splitlines()
        raise KdcacheError(
            f"a trial of Ray Tune failed {RETRIES + 1} times: {reason} Finished work is kept; "
            f"{sweep.out / 'ray'} has its log. Run the same command again to resume."
        )
    ended = {one.config["cohort"] for one in results if (one.metrics or {}).get("done")}
    left = {n: [s for s in cohort if s in sweep.todo] for n, cohort in enumerate(planned)}
    for number in ended:
        for student in left.pop(number):
            runner.mark_stopped(sweep, student)
    if any(left.values()):
        raise KeyboardInterrupt  # Tune returns normally after an interrupt


def cores(nodes: Sequence[dict[str, float]], trials: int, gpu: bool) -> int:
    """Processor cores of a trial: an even share of a node's among its GPUs, or of all of them."""
    if gpu:
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        return max(1, min((int(node.get("CPU", 1) // node["GPU"]) for node in with_gpu), default=1))
    of_nodes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    return max(1, min(sum(of_nodes) // trials, *of_nodes)) if of_nodes else 1


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Cluster at RAY_ADDRESS, or one of this machine while the body runs."""
    if ray.is_initialized():
        yield
        return
    ray_cluster.join(ray, quiet=True)
    try:
        yield
    finally:
        ray.shutdown()


def _tuner(sweep: Sweep, planned: Sequence[Sequence[Student]], gpu: bool, cores: int) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    trials = [[_plain(student) for student in cohort] for cohort in planned]
    settings = {
        "caches": [store.location for store in sweep.inputs.members.caches],
        "weights": list(sweep.inputs.members.weights),
        "data": absolute(sweep.inputs.source),
        "out": str(sweep.out.resolve()),
        "device": sweep.device.type,
        "cores": cores,
        "trackers": list(sweep.trackers),
    }
    # By epochs, not by reports: a resumed trial is compared with others of its epoch. The highest
    # is one that none reaches, as a trial would be stopped there before it has its result.
    epochs = max(student.recipe.epochs for cohort in planned for student in cohort)
    asha = ASHAScheduler(time_attr=_EPOCH, max_t=epochs + 1) if sweep.asha else FIFOScheduler()
    resources = {"cpu": float(cores), "gpu": float(gpu)}
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, settings=settings, trials=trials), resources
        ),
        param_space={"cohort": tune.grid_search([*range(len(trials))])},
        tune_config=tune.TuneConfig(metric=_METRIC, mode="max", scheduler=asha),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(sweep.out.resolve()),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )


def _trial(config: dict[str, Any], settings: dict[str, Any], trials: list[list[Any]]) -> None:
    """Train one cohort in a worker of Ray, which writes its log and its error to files."""
    logs.set_up(logging.StreamHandler(), logging.WARNING)
    try:
        _train_cohort(settings, trials[config["cohort"]])
    except Exception as error:
        known = system_errors.explained(error)
        text = f"{known.kind}: {known}" if known else traceback.format_exc()
        raise KdcacheError(redact(text)) from None


def _train_cohort(settings: dict[str, Any], cohort: Sequence[dict[str, Any]]) -> None:
    """Train one cohort, and report its epochs to Ray."""
    from ray import tune

    from train import recipe as recipes
    from train.data.inputs import open_inputs
    from train.trainer import validate

    students = tuple(
        Student(one["name"], recipes.build(one["recipe"], one["name"]), one["values"])
        for one in cohort
    )
    device = torch.device(settings["device"])
    threads.limit(settings["cores"])
    inputs = open_inputs(settings["caches"], settings["data"], settings["weights"])
    validate.set_up([one.recipe for one in students], inputs, device)
    sweep = Sweep(students, inputs, Path(settings["out"]), device, tuple(settings["trackers"]))
    last = {_METRIC: float("-inf"), _EPOCH: max(one.recipe.epochs for one in students)}

    def on_epoch(rows: dict[Path, dict[str, float]]) -> None:
        epoch = 1 + int(max(row["epoch"] for row in rows.values()))
        # the better of weights and moving average; minus the loss if not measured
        scores = [
            max((row[name] for name in ("top1", "top1_ema") if name in row), default=-row["loss"])
            for row in rows.values()
        ]
        now = {_METRIC: max(scores), _EPOCH: epoch}
        last.update(now)
        if epoch < max(one.recipe.epochs for one in students):  # the last, once it has its result
            tune.report(now)

    runner.train_cohort(sweep, students, on_epoch)
    tune.report(last)


def _plain(student: Student) -> dict[str, Any]:
    return {"name": student.name, "recipe": asdict(student.recipe), "values": student.values}
