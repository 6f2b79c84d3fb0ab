"""This process among those that a launcher started together, by its environment; for both stages.

torchrun, mpirun (Open MPI, MPICH, Intel MPI, MVAPICH2), srun, and whatever sets RANK and
WORLD_SIZE, such as Kubernetes' PyTorchJob. An allocation of Slurm (salloc, a batch script) is one
process: it has the variables of a task, but no step.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cache_tools.errors import UsageError

_WORLD = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
_MPI = (
    tuple(f"OMPI_COMM_WORLD_{name}" for name in _WORLD),
    tuple(f"MV2_COMM_WORLD_{name}" for name in _WORLD),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Variables of Open MPI, MVAPICH2, and of MPICH and Intel MPI."""
BY_RANK = "the launcher (RANK, WORLD_SIZE)"
_PORT, _PORTS = 20_000, 10_000
"""Range of ports from which a job of Slurm without MASTER_PORT takes its own."""


@dataclass(frozen=True)
class Launch:
    """This process among those started together."""

    rank: int = 0
    """Number, from 0."""
    count: int = 1
    """Count of processes."""
    local: int = 0
    """Number among those of this machine."""
    local_count: int = 1
    """Count on this machine."""
    by: str = ""
    """Launcher; empty = none."""


def find(environ: Mapping[str, str] = os.environ) -> Launch:
    """Find this process among those that its launcher started.

    Raises:
        UsageError: A number is none, or the launchers contradict each other.
    """
    mpi, step = _mpirun(environ), _srun(environ)  # a step with mpirun's daemons has another count
    outer = mpi if mpi.count > 1 and mpi.count != step.count else step
    if "TORCHELASTIC_RUN_ID" in environ:
        agents = number(environ, "GROUP_WORLD_SIZE", 1)
        if outer.count not in (1, agents):
            raise UsageError(
                f"{outer.by} started {outer.count} torchruns, and this one is for {agents}: all of "
                "them would do the same work. Pass torchrun --nnodes and --rdzv-endpoint, or use "
                f"{outer.by} alone."
            )
        return _by_rank(environ, "torchrun")
    if outer.count > 1 or number(environ, "WORLD_SIZE", 1) == 1:
        return outer
    return _by_rank(environ, BY_RANK)


def rendezvous(launch: Launch, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables by which torch.distributed finds the other processes.

    Raises:
        UsageError: MASTER_ADDR is unset and does not follow from the launcher.
    """
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if not address and launch.by == "srun":
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
        address = first_host(nodes)
    elif not address and launch.local_count == launch.count:
        address = "127.0.0.1"
    if not address:
        raise UsageError(
            f"{launch.by} started {launch.count} processes, and MASTER_ADDR, the machine of the "
            "first one, is unset. Export MASTER_ADDR and MASTER_PORT (in Slurm: "
            "MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) and "
            "MASTER_PORT=29500), start with torchrun, or start one process."
        )
    job = environ.get("SLURM_JOB_ID", "") if launch.by == "srun" else ""
    port = port or (str(_PORT + int(job) % _PORTS) if job.isdecimal() else "29500")
    names = "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"
    values = address, port, launch.rank, launch.count, launch.local
    return dict(zip(names, map(str, values), strict=True))


def first_host(nodes: str) -> str:
    """Return the first name of a Slurm node list such as gpu[03-06,9]-ib,login; "" of none."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _mpirun(environ: Mapping[str, str]) -> Launch:
    names = next((one for one in _MPI if one[1] in environ), None)
    return Launch() if names is None else _launch(environ, "mpirun", *names)


def _by_rank(environ: Mapping[str, str], by: str) -> Launch:
    return _launch(environ, by, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _srun(environ: Mapping[str, str]) -> Launch:
    # A batch script has SLURM_PROCID and SLURM_NTASKS as well, and is one process: only a step
    # started by srun has a number and a size of its own.
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return Launch()
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    count, nodes = number(environ, size, 1), number(environ, "SLURM_STEP_NUM_NODES", 1)
    if count == 1:
        return Launch()
    local = number(environ, "SLURM_LOCALID", 0), -(-count // max(nodes, 1))
    return Launch(number(environ, "SLURM_PROCID"), count, *local, "srun")


def _launch(
    environ: Mapping[str, str], by: str, rank: str, size: str, local: str, local_size: str
) -> Launch:
    """Read a launcher's variables; without the numbers on this machine, all may be on it.

    Only RANK alone is of one process on each machine, as of PyTorchJob's pods.
    """
    mine, count = number(environ, rank), number(environ, size)
    if mine >= count:
        raise UsageError(f"{rank} is {mine}, which is none of 0..{count - 1}, as {size} has it.")
    alone = by == BY_RANK and local not in environ
    on_this = number(environ, local_size, 1 if alone else count)
    return Launch(mine, count, number(environ, local, 0 if alone else mine), on_this, by)


def number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Read a number of the environment; UsageError when it is none."""
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name} is {'unset' if text is None else repr(text)}, expected a number, as the "
            "launcher of several processes sets it. Correct it, or unset all such variables (RANK, "
            "WORLD_SIZE) for one process."
        )
    return int(text)
