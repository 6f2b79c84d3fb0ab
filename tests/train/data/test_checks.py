"""Checks of inputs that several processes share."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cache_tools.errors import CacheDamaged
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from train.data.inputs import check_inputs, open_inputs
from train.distributed import World


@dataclass
class Meeting:
    """Threads that stand for processes."""

    size: int
    said: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)


@dataclass(frozen=True)
class Member(World):
    """One of them."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def all(self, value: Any) -> list[Any]:
        """Gather a value of each, by rank."""
        self.meeting.said[self.rank] = value
        self.meeting.barrier.wait()
        return [self.meeting.said[rank] for rank in range(self.size)]


def checked(cache: Path, size: int) -> list[BaseException | None]:
    """Check in several processes; what each raises."""
    inputs, meeting = open_inputs(cache, None), Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        runs = [
            pool.submit(check_inputs, inputs, Member(rank, size, meeting)) for rank in range(size)
        ]
        return [run.exception() for run in runs]


def test_each_process_checks_its_share_and_all_raise_what_one_finds(
    mutable_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = Counter[Part](), Cache.check_part

    def spy(self: Cache, part: Part) -> Any:
        seen[part] += 1
        return real(self, part)

    monkeypatch.setattr(Cache, "check_part", spy)
    assert checked(mutable_cache, 3) == [None] * 3
    assert seen == Counter(Cache.open(mutable_cache).parts())
    chunk = mutable_cache / "targets/tail/c/0/3/0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))
    found = checked(mutable_cache, 3)
    assert all(isinstance(error, CacheDamaged) for error in found)
    assert {str(error).count("targets/tail/c/0/3/0") for error in found} == {1}


def test_a_cache_without_fingerprints_is_named_once(
    mutable_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("train.data.inputs.probes.check_probes", lambda *_: 0)
    assert checked(mutable_cache, 2) == [None] * 2
    assert caplog.text.count("has no fingerprint") == 1
