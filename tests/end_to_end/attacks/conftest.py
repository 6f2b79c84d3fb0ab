"""An honest cache for each attack, and a reader to open it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.attacks import attacker
from tests.end_to_end.attacks.victim import MEMORY, Outcome, Victim


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all attacks start from."""
    return attacker.honest(tmp_path_factory.mktemp("honest") / "cache.zarr")


@pytest.fixture
def forged(untouched: Path, tmp_path: Path) -> Path:
    """A copy of it to forge."""
    return Path(shutil.copytree(untouched, tmp_path / "forged.zarr"))


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    """A reader in a process of its own."""
    reader = Victim()
    yield reader
    reader.close()


@pytest.fixture(scope="session")
def truth(untouched: Path, victim: Victim) -> Outcome:
    """What the reader finds in the honest cache."""
    outcome = victim.open(untouched)
    assert (outcome.refusals, outcome.escaped) == ({}, {})
    assert outcome.targets
    return outcome


@pytest.fixture
def refused(victim: Victim, truth: Outcome) -> Callable[..., str]:
    """Assert that a cache is refused by an error that names one of `where`; the errors' text."""

    def check(path: Path, *where: str) -> str:
        outcome = victim.open(path)
        assert not outcome.escaped, "\n".join(outcome.escaped.values())
        assert outcome.refusals, f"nobody refused {path}"
        assert any(name in outcome.message for name in where), outcome.message
        assert outcome.grown < MEMORY, f"{outcome.grown / 2**20:.0f} MiB for {path}"
        return outcome.message

    return check


@pytest.fixture
def harmless(victim: Victim, truth: Outcome) -> Callable[[Path], None]:
    """Assert that a cache is refused by a KdcacheError, or gives the targets of the honest one."""

    def check(path: Path) -> None:
        outcome = victim.open(path)
        assert not outcome.escaped, "\n".join(outcome.escaped.values())
        assert outcome.refusals or outcome.targets == truth.targets
        assert outcome.grown < MEMORY, f"{outcome.grown / 2**20:.0f} MiB for {path}"

    return check
