"""Caches are moved without waiting for the disk, and hardly for a server."""

from collections.abc import Iterator

import pytest

from cache_tools.storage import fsspec_client


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Tests wait for no disk and hardly for a server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr(fsspec_client, "FIRST_PAUSE", 0.001)
        yield
