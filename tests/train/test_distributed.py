"""Two processes with half a batch each train as one with the whole."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cache_tools.data.images import ImageDataset
from cache_tools.errors import UsageError
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from train import api
from train.data.loader import Loader
from train.data.native_renderer import NativeRenderer
from train.data.schedule import Schedule
from train.data.stored_targets import StoredTargets
from train.distributed import ALONE, World, join
from train.loss.task import CachedDistillationTask
from train.trainer import student

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
ORDER = [
    "epochs=2",
    "views_per_epoch=2",
    "batch_size=40",
    "student=test_vit",
    "model_ema_decay=0.9",
]


FOLDER = Path(sys.executable).parent
HALTED = """
import sys, time
from cache_tools.cli import main as cli
from train.trainer import checkpoint

save, left = checkpoint.save, 5

def halted(*arguments):
    global left
    save(*arguments)
    left -= 1
    while not left:
        time.sleep(1)

checkpoint.save = halted
sys.argv[0] = "kdcache"
cli.console()
"""
"""`kdcache` that waits to be killed after its fifth checkpoint."""
MISHAP = """
import os, signal, sys
import torch
from cache_tools.cli import main as cli
from cache_tools.errors import DataError
from train.trainer.student import StudentTrainer

rank, epoch, step, mishap = sys.argv[1].split()
del sys.argv[1]
end_step = StudentTrainer.end_step

def stricken(self, losses):
    end_step(self, losses)
    at = self.progress.epoch, self.progress.step
    if os.environ["RANK"] == rank and at == (int(epoch), int(step)):
        if mishap == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if mishap == "data":
            raise DataError("a.tar cannot be read.")
        os.kill(os.getpid(), getattr(signal, mishap))

StudentTrainer.end_step = stricken
sys.argv[0] = "kdcache"
cli.console()
"""
"""`kdcache` with a mishap of one process after a step of the training."""


def command(
    processes: int, *arguments: object, program: Sequence[object] = (FOLDER / "kdcache",)
) -> list[str]:
    words = [FOLDER / "torchrun", "--standalone", f"--nproc-per-node={processes}"]
    return [*map(str, [*words, "--no-python", *program, "train", "digits", *arguments])]


def start(
    words: Sequence[object],
    variables: Callable[[int], dict[str, str]],
    program: Sequence[object] = (FOLDER / "kdcache",),
) -> list[subprocess.Popen[str]]:
    """Start two processes with the variables of a launcher, which they go by."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"MASTER_PORT": str(free.getsockname()[1])}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [*map(str, program), *map(str, words)],
            env=ENVIRONMENT | port | variables(rank), stdout=pipe, stderr=pipe, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = command(processes, *arguments)
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["grad_accum_steps=2", "clip_grad=1.0"],
        ["aug_repeats=2", "views_per_epoch=1", "grad_accum_steps=2", "batch_size=20"],
    ],
)
def test_one_and_two_processes_agree(digits_cache: Path, tmp_path: Path, more: list[str]) -> None:
    curves, weights = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        fixed = ("--cache", digits_cache, "--out", out, "--device", "cpu", *ORDER, *more, "--json")
        done = torchrun(processes, *fixed)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["student"] == "test_vit"  # one process speaks
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        curves.append([row["loss"] for row in rows])
        weights.append(load_file(out / "model/model.safetensors"))
        weights[-1] |= {
            f"ema.{k}": v for k, v in load_file(out / "model-ema/model.safetensors").items()
        }
        assert not list(out.glob("checkpoint*"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-2, atol=2e-4), name


@pytest.mark.slow
def test_killed_processes_go_on_as_if_nothing_had_happened(
    digits_cache: Path, tmp_path: Path
) -> None:
    fixed = (
        "--cache",
        digits_cache,
        "--device",
        "cpu",
        "student=test_vit",
        "batch_size=10",
        "epochs=3",
    )
    fixed += ("views_per_epoch=4", "checkpoint_minutes=0.0", "drop=0.1")
    assert torchrun(2, *fixed, "--out", tmp_path / "undisturbed").returncode == 0
    with subprocess.Popen(
        command(2, *fixed, "--out", tmp_path / "killed", program=[sys.executable, "-c", HALTED]),
        env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL,
    ) as killed:  # fmt: skip
        while not (tmp_path / "killed/checkpoint.pt").exists():
            time.sleep(0.02)
            assert killed.poll() is None
        ranks = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()  # first: it would end the others in peace
        for process in ranks:
            process.kill()
    assert not (tmp_path / "killed/result.json").exists()
    again = torchrun(2, *fixed, "--out", tmp_path / "killed")
    assert "going on at epoch" in again.stderr
    both = [load_file(tmp_path / n / "model/model.safetensors") for n in ("undisturbed", "killed")]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    steps = [
        [(row["step"], row["loss"], row["lr"]) for row in map(json.loads, lines)]
        for lines in (
            (tmp_path / n / "steps.jsonl").read_text().splitlines()
            for n in ("undisturbed", "killed")
        )
    ]
    assert steps[0] == steps[1]
    assert len(list((tmp_path / "killed/tensorboard").iterdir())) == 2  # the first process's alone


@pytest.mark.slow
def test_where_one_process_is_lost_the_others_end_and_the_run_goes_on_exactly(
    digits_cache: Path, tmp_path: Path
) -> None:
    """One run, in which one process after the other is killed, stopped, or raises an error."""
    order = ["train", "digits", "--cache", digits_cache, "--device", "cpu", "student=test_vit"]
    order += ["batch_size=10", "epochs=3", "views_per_epoch=4", "checkpoint_minutes=0.0"]

    def train(out: str, mishap: str) -> list[subprocess.Popen[str]]:
        return start(
            [mishap, *order, "drop=0.1", "--out", tmp_path / out],
            lambda rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            (sys.executable, "-c", MISHAP),
        )

    undisturbed = train("undisturbed", "9 9 9 none")
    assert [(p.communicate(), p.returncode)[1] for p in undisturbed] == [0, 0]
    for rank, epoch, step, mishap, code, text in (
        (1, 0, 35, "SIGKILL", -signal.SIGKILL, r"Connection (closed|reset) by peer"),
        (0, 1, 3, "SIGKILL", -signal.SIGKILL, r"Connection (closed|reset) by peer"),
        (1, 1, 35, "memory", 2, "process 1: UsageError: the device is too small for test_vit"),
        (0, 2, 3, "data", 1, "by peer|process 0: DataError: a.tar cannot be read"),
        (1, 2, 20, "SIGSTOP", 1, "no sign of process 1 for 40 s"),
    ):
        both = train("disturbed", f"{rank} {epoch} {step} {mishap}")
        other = both[1 - rank].communicate()[1]
        both[rank].send_signal(signal.SIGCONT)
        own = both[rank].communicate()[1]
        assert (both[rank].returncode, both[1 - rank].returncode) == (code, 1), (own, other)
        assert re.search(f"another process of this training has ended or hangs .*{text}", other)
        assert "Run the same command again: it goes on from the last checkpoint" in other
        assert "Traceback" not in own + other
    again = train("disturbed", "9 9 9 none")
    assert "going on at epoch 2" in again[0].communicate()[1]
    assert again[1].communicate() and again[1].returncode == again[0].returncode == 0
    both_weights = [
        load_file(tmp_path / out / "model/model.safetensors")
        for out in ("undisturbed", "disturbed")
    ]
    assert all(torch.equal(value, both_weights[1][n]) for n, value in both_weights[0].items())


@pytest.mark.slow
def test_all_processes_evaluate_the_network_that_is_saved(
    digits_cache: Path, tmp_path: Path
) -> None:
    """Running statistics of batch normalisation are means over the processes."""
    fixed = ("--cache", digits_cache, "--device", "cpu", *ORDER, "student=test_efficientnet")
    assert torchrun(2, *fixed, "--out", tmp_path / "run").returncode == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    alone = [FOLDER / "kdcache", "eval", tmp_path / "run", "--json"]
    done = subprocess.run([*map(str, alone)], capture_output=True, check=True, env=ENVIRONMENT)
    measured = json.loads(done.stdout)
    for name in ("top1", "top1_ema"):
        assert measured[name] == result[name]


def test_every_process_has_its_slice_and_a_batch_must_be_shared_evenly(
    digits_cache: Path, digits: Path, images: object
) -> None:
    store = Cache.open(digits_cache)
    schedule = Schedule(store, 1, 40, seed=0)
    whole = next(iter(loader(store, images, schedule, ALONE).epoch(0)))
    halves = [
        next(iter(loader(store, images, schedule, World(rank, 2)).epoch(0))) for rank in (0, 1)
    ]
    for rank, half in enumerate(halves):
        at = slice(20 * rank, 20 * rank + 20)
        assert (half.pixels == whole.pixels[at]).all()
        assert (half.partner == whole.partner[at]).all()
        assert (half.targets.index_BK == whole.targets.index_BK[at]).all()
        assert (half.label_B == whole.label_B[at]).all()
    with pytest.raises(UsageError, match="cannot be divided among 3 processes"):
        loader(store, images, schedule, World(0, 3))


def loader(store: Cache, images: ImageDataset, schedule: Schedule, world: World) -> Loader:
    targets = StoredTargets(CacheEnsemble((store,), (1.0,)))
    return Loader(schedule, targets, NativeRenderer(store, images, 1), world)


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=pytest.mark.gpu)]
)
def test_gradients_averaged_over_one_process_are_its_own(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    """Each backend's operations, and a whole run with the gradients averaged by them."""
    values = {"epochs": 2, "views_per_epoch": 2, "batch_size": 20, "grad_accum_steps": 2}
    values |= {"student": "test_vit", "model_ema_decay": 0.0}

    def fit(name: str) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        api.fit("digits", cache=digits_cache, out=out, device=device, values=values)
        return load_file(out / "model/model.safetensors")

    class Averaged(CachedDistillationTask):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.prepare_distributed([0] if device == "cuda" else None)
            wrapped.append(self.trainable_module)

    wrapped: list[torch.nn.Module] = []
    alone = fit("alone")
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    try:
        world = World(0, 2)  # so that operations are not left out
        assert world.sum([1.5, 2.0]) == [1.5, 2.0]
        assert world.any(True)
        assert world.broadcast({"a": 1}) == {"a": 1}
        mean = torch.full((3,), 4.0, device=device)
        world.average([mean])
        assert mean.tolist() == [2.0] * 3
        monkeypatch.setattr(student, "CachedDistillationTask", Averaged)
        averaged = fit("averaged")
    finally:
        torch.distributed.destroy_process_group()
    assert [type(module).__name__ for module in wrapped] == ["DistributedDataParallel"]
    for name, value in alone.items():
        assert torch.allclose(value, averaged[name], rtol=1e-4, atol=1e-5), name


def test_an_allocation_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As salloc and the script of sbatch -n 4 are, with MASTER_ADDR exported or not."""
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    for _ in range(2):
        with join("cpu") as joined:
            assert joined == (ALONE, torch.device("cpu"))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_srun_without_a_first_machine_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in {"PROCID": 1, "STEP_ID": 0, "STEP_NUM_TASKS": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with (
        pytest.raises(UsageError, match="srun started 4 processes, and MASTER_ADDR"),
        join("cpu"),
    ):
        pass


@pytest.mark.slow
def test_two_processes_of_mpirun_train_together(
    digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    words = ["train", "digits", "--cache", digits_cache, "--data", digits, "--device", "cpu"]
    words += ["--out", tmp_path / "run", *ORDER]
    running = start(words, lambda rank: {
        f"OMPI_COMM_WORLD_{name}": str(value)
        for name, value in {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}.items()
    })  # fmt: skip
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "2 epochs" in printed[0]
    assert printed[1] == ""
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2
