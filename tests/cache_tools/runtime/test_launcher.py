"""Processes by their launcher's variables, and how they find each other."""

import pytest

from cache_tools.errors import UsageError
from cache_tools.runtime import launcher
from cache_tools.runtime.launcher import BY_RANK, Launch

Environ = dict[str, str]
BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
SRUN = BATCH | STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
OMPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, Launch()),  # salloc
        (BATCH, Launch()),
        (BATCH | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, Launch()),
        (SRUN, Launch(3, 4, 1, 2, "srun")),
        (OMPI, Launch(5, 8, 1, 4, "mpirun")),
        (OMPI | BATCH, Launch(5, 8, 1, 4, "mpirun")),
        (OMPI | SRUN | {"SLURM_STEP_NUM_TASKS": "2"}, Launch(5, 8, 1, 4, "mpirun")),  # its daemons
        (HYDRA, Launch(1, 2, 1, 2, "mpirun")),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, Launch(3, 4, 1, 2, "srun")),  # --mpi=pmi2
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 0, 1, BY_RANK)),  # a pod of PyTorchJob
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Launch(1, 2, 1, 2, BY_RANK)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "2"}, Launch(3, 4, 1, 2, "srun")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch()),
    ],
)
def test_the_variables_name_the_launcher(environ: Environ, expected: Launch) -> None:
    assert launcher.find(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK is unset"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, r"none of 0\.\.3"),
        (OMPI | {"OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK is 'x'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(environ: Environ, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        launcher.find(environ)


@pytest.mark.parametrize(
    ("environ", "address", "port"),
    [
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[03-06,9],x"}, "gpu03", "20001"),
        (SRUN | {"SLURM_JOB_NODELIST": "b1,b2", "SLURM_JOB_ID": "123456"}, "b1", "23456"),
        (SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, "a", "1"),
        (HYDRA, "127.0.0.1", "29500"),
    ],
)
def test_the_first_machine_follows_from_the_launcher(
    environ: Environ, address: str, port: str
) -> None:
    found = launcher.rendezvous(launcher.find(environ), environ)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == (address, port)
    assert found["WORLD_SIZE"] == str(launcher.find(environ).count)


@pytest.mark.parametrize("environ", [SRUN, OMPI, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_without_a_first_machine_there_is_a_message(environ: Environ) -> None:
    with pytest.raises(UsageError, match=r"MASTER_ADDR.*is unset.*scontrol"):
        launcher.rendezvous(launcher.find(environ), environ)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1"),
        ("gpu[03-06,9]-ib,login", "gpu03-ib"),
        ("a-b[10,12],c", "a-b10"),
        ("r[1-2]n[05-07]", "r1n05"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, expected: str) -> None:
    assert launcher.first_host(nodes) == expected
