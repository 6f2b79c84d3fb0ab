"""Cohorts as trials of Ray Tune: many GPUs and machines, retries, early stopping.

A trial trains the students of one cohort in the folders of the sweep, which all machines must
reach. Its memory is our checkpoints: a trial whose worker dies is started again by Tune and goes on
where they are, so nothing is trained twice. With ASHA the trials whose best student falls behind
are stopped; their students keep their checkpoints, and a later run without ASHA finishes them.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cache_tools.data.open import resolve
from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import ray_cluster, threads
from train.sweep import runner as sweeps
from train.sweep.grid import Student
from train.sweep.runner import Sweep

log = logging.getLogger("kdcache")
RETRIES = 3
"""How often a trial is started again when its worker died."""
_METRIC, _EPOCH = "merit", "epoch"


def check() -> None:
    """Refuse before any work is done when Ray Tune is not there."""
    try:
        importlib.import_module("ray.tune")  # which needs pandas and more, that Ray alone does not
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray Tune. Run: pip install 'kdcache[ray]'. Or leave it out: "
            "cohorts then train one after another here."
        ) from None


def train(sweep: Sweep, planned: Sequence[Sequence[Student]]) -> None:
    """Train every cohort as a trial; Ray decides where and when.

    Args:
        sweep: The sweep, prepared.
        planned: Its cohorts.

    Raises:
        UsageError: There is no cluster where RAY_ADDRESS says.
        KdcacheError: A trial failed more often than it is started again.
        KeyboardInterrupt: Tune was interrupted.
    """
    if not planned:
        return
    import ray

    with _cluster(ray), contextlib.redirect_stdout(sys.stderr):  # stdout carries the table
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = sweep.device.type == "cuda"
        results = _tuner(sweep, planned, gpu, cores(nodes, len(planned), gpu)).fit()
    for error in results.errors:
        raise KdcacheError(
            f"a trial of Ray Tune failed {RETRIES + 1} times: {str(error).strip().splitlines()[-1]}"
            f" What is done is kept; {sweep.out / 'ray'} has its log. Run the same command again "
            "to go on."
        )
    ended = {one.config["cohort"] for one in results if (one.metrics or {}).get("done")}
    left = {n: [s for s in cohort if s in sweep.todo] for n, cohort in enumerate(planned)}
    for number in ended:
        for student in left.pop(number):
            sweeps.stop(sweep, student)
    if any(left.values()):
        raise KeyboardInterrupt  # Tune ends in peace when it is asked to


def cores(nodes: Sequence[dict[str, float]], trials: int, gpu: bool) -> int:
    """Processor cores of a trial: an even share of a node's among its GPUs, or of all of them.

    Args:
        nodes: What each node of the cluster has.
        trials: How many trials there are.
        gpu: Whether each takes a GPU.
    """
    if gpu:
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        return max(1, min((int(node.get("CPU", 1) // node["GPU"]) for node in with_gpu), default=1))
    of_nodes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    return max(1, min(sum(of_nodes) // trials, *of_nodes)) if of_nodes else 1


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one of this machine while the body runs."""
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
    where = {
        "caches": [store.location for store in sweep.inputs.members.stores],
        "weights": list(sweep.inputs.members.weights),
        "data": resolve(sweep.inputs.source),
        "out": str(sweep.out.resolve()),
        "device": sweep.device.type,
        "cores": cores,
        "also": list(sweep.also),
    }
    # By epochs, not by reports: a trial that goes on is compared with others as old as it is. The
    # highest is one that none reaches, as a trial would be stopped there before it has its result.
    epochs = max(student.recipe.epochs for cohort in planned for student in cohort)
    asha = ASHAScheduler(time_attr=_EPOCH, max_t=epochs + 1) if sweep.asha else FIFOScheduler()
    resources = {"cpu": float(cores), "gpu": float(gpu)}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, where=where, trials=trials), resources),
        param_space={"cohort": tune.grid_search([*range(len(trials))])},
        tune_config=tune.TuneConfig(metric=_METRIC, mode="max", scheduler=asha),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(sweep.out.resolve()),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )


def _trial(config: dict[str, Any], where: dict[str, Any], trials: list[list[Any]]) -> None:
    """One cohort, in a worker of Ray."""
    from ray import tune

    from train import recipe as recipes
    from train import run_dir
    from train.trainer import validate

    students = tuple(
        Student(one["name"], recipes.build(one["recipe"], one["name"]), one["values"])
        for one in trials[config["cohort"]]
    )
    device = torch.device(where["device"])
    threads.limit(where["cores"])
    inputs = run_dir.open_inputs(where["caches"], where["data"], where["weights"])
    validate.set_up(inputs, device)
    sweep = Sweep(students, inputs, Path(where["out"]), device, tuple(where["also"]))
    last = {_METRIC: float("-inf"), _EPOCH: max(one.recipe.epochs for one in students)}

    def told(rows: dict[Path, dict[str, float]]) -> None:
        epoch = 1 + int(max(row["epoch"] for row in rows.values()))
        now = {_METRIC: max(_merit(row) for row in rows.values()), _EPOCH: epoch}
        last.update(now)
        if epoch < max(one.recipe.epochs for one in students):  # else once there is the result
            tune.report(now)

    sweeps.train_cohort(sweep, students, told)
    tune.report(last)


def _merit(row: dict[str, float]) -> float:
    """What trials are compared by: accuracy, of the average where that is better, else the loss."""
    measured = [row[name] for name in ("top1", "top1_ema") if name in row]
    return max(measured, default=-row["loss"])


def _plain(student: Student) -> dict[str, Any]:
    return {"name": student.name, "recipe": asdict(student.recipe), "values": student.values}
