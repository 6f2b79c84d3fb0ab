"""Readers end with a value or an error of ours, within bounds, whatever a file has."""

from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.readers import READERS
from tests.fuzz.seeds import SEEDS


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_with_a_value_or_an_error(name: str) -> None:
    @settings(max_examples=READERS[name].examples, database=None, phases=[Phase.generate])
    @given(st.data())
    def read(draw: st.DataObject) -> None:
        harness.example(name, draw)

    read()


@pytest.mark.parametrize("name", READERS)
def test_honest_files_are_read(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    READERS[name].read(tmp_path)


@pytest.mark.parametrize("name", sorted({*SEEDS, *harness.found()}))
def test_what_was_found_ends_with_a_value_or_an_error(name: str) -> None:
    for files in (SEEDS, harness.found()):
        for path, contents in files.get(name, {}).items():
            assert path in harness.honest(name)
            for data in contents:
                harness.check(name, path, data)
