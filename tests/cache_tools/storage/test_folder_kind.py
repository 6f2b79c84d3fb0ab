"""Folders that are no cache, and what a message says that they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.storage.folder_kind import likely_kind
from tests.helpers.outcome import Outcome


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([], ""),
        ([".hidden"], ""),
        (["train/dog/a.jpg", "readme.txt"], "a data set (train/dog/a.jpg)"),
        (["b-0000.tar", "teacher-model/config.json"], "a data set (b-0000.tar)"),
        (["config.json", "a.png"], "a run or a network (config.json)"),
        (["kd/config.json", "labels/config.json", "c.png"],
         "a folder of runs or networks (kd, labels)"),
        (["a.zarr/zarr.json", "digits/b.tar"], "a folder of caches (a.zarr)"),
        (["samples/zarr.json", "targets/zarr.json"], ""),
        (["thesis.tex"], "a folder of other files (thesis.tex)"),
    ],
)  # fmt: skip
def test_a_kind_follows_from_names(names: list[str], kind: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert likely_kind(tmp_path) == kind


def test_a_data_set_is_not_taken_for_the_place_of_a_cache(
    kdcache: Callable[..., Outcome], digits: Path
) -> None:
    outcome = kdcache("info", digits)
    assert (outcome.code, outcome.out) == (2, "")
    assert "CacheNotFound: there is no cache at" in outcome.err
    assert "seems to be a data set (digits-" in outcome.err
    assert f"--out {digits}" not in outcome.err
