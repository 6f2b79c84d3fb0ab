"""Memory that this process may use: the machine's, or that of its control groups."""

from pathlib import Path

import pytest

from cache_tools.runtime import host_memory, threads

MACHINE = host_memory.os.sysconf("SC_PHYS_PAGES") * host_memory.os.sysconf("SC_PAGE_SIZE")
V1 = "3:cpu,cpuacct:/job\n5:memory:/job/task\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job/task\n", {"job/task/memory.max": "max", "job/memory.max": "70000"}, 70_000),
        ("0::/job/task\n", {"job/task/memory.max": "max", "memory.max": "max"}, MACHINE),
        ("0::/\n", {"memory.max": "90000\n"}, 90_000),
        ("0::/elsewhere/container\n", {"memory.max": "90000\n"}, 90_000),
        (V1, {"memory/job/task/memory.limit_in_bytes": "80000"}, 80_000),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        (V1, {"memory.max": "5"}, MACHINE),
        ("", {"memory.max": "5"}, MACHINE),
    ],
)
def test_the_least_limit_of_the_control_groups(
    membership: str,
    files: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_MEMBERSHIP", tmp_path / "membership")
    assert host_memory.limit() == expected


def test_a_membership_that_cannot_be_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "membership").write_bytes(b"0::/\xff\n")
    monkeypatch.setattr(host_memory, "_MEMBERSHIP", tmp_path / "membership")
    assert host_memory.limit() == MACHINE


def test_processes_of_one_machine_divide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "limit", lambda: 8000)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert host_memory.share() == 8000
    monkeypatch.setattr(threads, "_all_cores", lambda: 8)
    monkeypatch.setattr(threads, "_max_cores", 2)  # a worker that an engine has started
    assert host_memory.share() == 2000
    monkeypatch.setattr(threads, "_max_cores", 8)
    for name, value in (("RANK", 1), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert host_memory.share() == 2000
