"""Pictures that other programs have labelled, and the command that imports their files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="session")
def sizes(folder: Path) -> Sizes:
    return writers.pictures(folder / "photos")


@pytest.fixture
def import_(folder: Path, sizes: Sizes, kdcache: Command) -> Callable[..., Outcome]:
    def call(kind: str, source: Path, out: Path, *more: object) -> Outcome:
        data = () if "--data" in more else ("--data", folder / "photos")
        return kdcache("import", kind, source, *data, "--out", out, *more)

    return call
