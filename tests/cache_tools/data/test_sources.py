"""Names of data sets: folders whose names have characters of patterns, and patterns below them."""

from pathlib import Path

import pytest

from cache_tools.data import sources


@pytest.mark.parametrize("name", ["set [1]", "set {v2}", "what?", "a{b,c}", "*"])
def test_a_folder_with_characters_of_patterns(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    files = [str(tmp_path / name / f"train-{i}.tar") for i in range(3)]
    for file in files:
        Path(file).touch()
    for pattern in ("", "/train-{0..2}.tar", "/train-*.tar", "/train-[0-2].tar"):
        found = sources.find_local(f"{tmp_path / name}{pattern}", "train")
        assert found is not None
        assert list(found.names) == files
