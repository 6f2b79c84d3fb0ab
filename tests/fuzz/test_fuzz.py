"""Readers end with a value or an error of ours, within bounds, whatever a file has."""

from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.readers import READERS

FOUND = sorted(path for path in harness.CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].examples])
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


@pytest.mark.parametrize("path", FOUND, ids=lambda path: str(path.relative_to(harness.CORPUS)))
def test_what_was_found_stays_mended(path: Path) -> None:
    name, _, *inner = path.relative_to(harness.CORPUS).parts
    harness.check(name, "/".join(inner), path.read_bytes())
