"""No thread of stage 1 outlives the test that has started it."""

import threading
from collections.abc import Iterator

import pytest

PATIENCE = 120.0


@pytest.fixture(autouse=True)
def all_threads_end() -> Iterator[None]:
    yield
    ours = ("render", "windows", "encode", "commit")
    for thread in [t for t in threading.enumerate() if t.name.startswith(ours)]:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread.name
