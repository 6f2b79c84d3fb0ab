"""Shares from torchrun, srun, Slurm's arrays and by hand; and what is refused."""

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from cache_tools.errors import UsageError
from cache_tools.runtime import threads
from cache_tools.store.cache import Cache
from pipeline.engines import launch, local
from pipeline.engines.launch import Task
from pipeline.run import PartSelection
from tests.helpers.outcome import Outcome

Environ = dict[str, str]


def torchrun(rank: int, world: int, local_rank: int = 0, nodes: int = 1) -> Environ:
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank}
    numbers |= {"LOCAL_WORLD_SIZE": world // nodes, "GROUP_WORLD_SIZE": nodes}
    return {"TORCHELASTIC_RUN_ID": "none"} | {k: str(v) for k, v in numbers.items()}


def srun(rank: int, tasks: int, nodes: int = 1) -> Environ:
    numbers = {"PROCID": rank, "NTASKS": tasks, "STEP_NUM_TASKS": tasks, "STEP_ID": 0}
    numbers |= {"STEP_NUM_NODES": nodes, "LOCALID": rank % (tasks // nodes)}
    return {f"SLURM_{k}": str(v) for k, v in numbers.items()}


def mpirun(rank: int, world: int) -> Environ:
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(world)}


def array(number: int, first: int, last: int, count: int | None = None) -> Environ:
    count = count or last - first + 1
    numbers = {"ID": number, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in numbers.items()}


def chosen(environ: Environ, *told: int | None, by_number: bool = False) -> tuple[int, int]:
    task = launch.choose(*told, by_number=by_number, environ=environ)
    return task.number, task.count


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        (torchrun(3, 8), (3, 8)),
        (srun(3, 8, nodes=2), (3, 8)),
        (torchrun(3, 8, 1, nodes=2) | srun(1, 2, nodes=2), (3, 8)),
        (array(2, 0, 7), (2, 8)),
        (array(3, 1, 8), (2, 8)),
        (array(2, 0, 3) | srun(1, 2), (5, 8)),
        (array(2, 0, 3) | torchrun(1, 2), (5, 8)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),  # PyTorchJob
        (mpirun(3, 8), (3, 8)),
        (array(2, 0, 3) | mpirun(1, 2), (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script: one process
        (srun(0, 1) | {"SLURM_NTASKS": "8"}, (0, 1)),  # a shell of salloc
    ],
)
def test_the_launcher_decides_the_share(environ: Environ, expected: tuple[int, int]) -> None:
    assert chosen(environ) == expected


def test_explicit_options_win() -> None:
    assert chosen({}, 3, 8) == (3, 8)
    assert chosen(array(2, 0, 7), 0, 2) == (0, 2)
    assert chosen(array(17, 3, 17, count=2), None, 64) == (17, 64)  # some of a larger array again
    assert chosen(torchrun(3, 8), 5, 8) == (5, 8)
    assert chosen({"RANK": "1", "WORLD_SIZE": "2"}, 5, 8) == (5, 8)  # divided by hand
    assert chosen(array(7, 3, 9, count=3), by_number=True) == (0, 1)
    assert chosen(torchrun(1, 2) | array(7, 3, 9, count=3), by_number=True) == (1, 2)


@pytest.mark.parametrize(
    ("environ", "told", "says"),
    [
        ({}, (3, None), "Pass --tasks"),
        ({}, (None, 8), "Pass --task, counted from 0"),
        ({}, (8, 8), r"none of 0\.\.7"),
        (torchrun(3, 8), (0, 2), "torchrun started 8 processes"),
        (srun(3, 8), (None, 4), "srun started 8 processes"),
        (mpirun(3, 8), (0, 4), "mpirun started 8 processes"),
        ({"WORLD_SIZE": "4"}, (None, None), "RANK is unset"),
        (torchrun(0, 4) | srun(1, 2, nodes=2), (None, None), "2 torchruns.*is for 1"),
        (array(9, 3, 9, count=3), (None, None), r"\$SLURM_ARRAY_TASK_ID"),
        (torchrun(0, 2) | {"RANK": "first"}, (None, None), "RANK is 'first'"),
    ],
)
def test_settings_that_disagree_are_refused(
    environ: Environ, told: tuple[int | None, int | None], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        launch.choose(*told, environ=environ)


def test_shares_are_whole_decode_groups_and_add_up(digits_cache: Path) -> None:
    store = Cache.open(digits_cache)
    store.num_views = 24
    shares = [PartSelection(worker, 3).of(store, 4) for worker in range(3)]
    assert sorted(chain(*shares)) == sorted(store.parts())
    assert [sorted({part.view // 4 for part in share}) for share in shares] == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]
    some = PartSelection(0, 2, numbers=frozenset({1, 2, 5, 9})).of(store, 4)
    assert [part.view for part in some] == [1, 2, 9]


def test_every_gpu_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local.devices("cpu", 3) == ["cpu"] * 3
    assert local.devices(None, None) == [None]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert local.devices(None, None) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert local.devices("cuda", 2) == ["cuda:0", "cuda:1"]
    assert local.devices("cuda:3", None) == ["cuda:3"]
    with pytest.raises(UsageError, match="more than the 4 visible GPUs"):
        local.devices(None, 5)
    with pytest.raises(UsageError, match="a GPU takes one"):
        local.devices("cuda:3", 2)


def test_ranks_of_one_machine_take_a_gpu_each_and_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, log = [], logging.getLogger("a rank's")
    monkeypatch.setattr(launch, "log", log)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(launch, "_on", asked.append)
    monkeypatch.setattr(threads, "_max_cores", 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    launch.engine(Task(6, 8, 2, 4, 6, "torchrun", "torchrun"), None, None)
    assert asked == ["cuda:2"]
    assert threads.cpu_count() == 2
    assert log.level == logging.WARNING  # only rank 0 logs
    with pytest.raises(UsageError, match="--workers 2, but torchrun started 4 processes"):
        launch.engine(Task(6, 8, 2, 4, 6, "torchrun", "torchrun"), None, 2)


def test_missing_parts_go_into_an_array_and_from_it_into_the_command(
    kdcache: Callable[..., Outcome],
    mutable_cache: Path,
    digits: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sbatch --array=$(kdcache status CACHE --missing --format slurm), task by task."""
    store = Cache.open(mutable_cache)
    for part in list(store.parts())[1:3]:
        (mutable_cache / part.record).unlink()
    spec = kdcache("status", mutable_cache, "--missing", "--format", "slurm").out.strip()
    assert spec == "1-2"
    for number in (1, 2):
        for name, value in array(number, 1, 2).items():
            monkeypatch.setenv(name, value)
        arguments = (
            "cache",
            "digits",
            "--data",
            digits,
            "--teacher",
            teacher,
            "--out",
            mutable_cache,
        )
        done = kdcache(
            *arguments, "--device=cpu", f"--parts={number}", "num_views=4", "views.mixup=0.5"
        )
        assert f"{number + 2} of 4 parts" in done.out
    assert kdcache("status", mutable_cache).code == 0
