"""Every import: it resumes, refuses other data, and keeps fewer classes on request."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import CLASSES, Sizes
from tests.helpers.imported_caches import opened, stored_probabilities
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def test_other_data_is_no_reason_to_go_on(sizes: Sizes, tmp_path: Path, import_: Command) -> None:
    """Nothing of TinyViT's records but their keys says which images they are of."""
    keys = [name.split("/")[1] for name in sizes]
    writers.tinyvit(tmp_path / "t", keys, [writers.label_of(n) for n in sizes])
    out = tmp_path / "c.zarr"
    assert import_("tinyvit", tmp_path / "t", out).code == 0
    (out / Part(1, 0).record).unlink()
    others = writers.pictures(tmp_path / "others", count=3)
    writers.tinyvit(tmp_path / "u", [n.split("/")[1] for n in others], [0] * len(others))
    said = import_("tinyvit", tmp_path / "u", out, "--data", tmp_path / "others")
    assert (said.code, "another cache" in said.err) == (2, True)


def test_run_again_goes_on_and_another_source_is_another_cache(
    sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    out = tmp_path / "c.zarr"
    assert import_("fkd", tmp_path / "fkd", out, "--size", 32).code == 0
    before = Cache.open(out).content_id()
    (out / Part(1, 0).record).unlink()
    assert import_("fkd", tmp_path / "fkd", out, "--size", 32).code == 0
    assert Cache.open(out).content_id() == before
    said = import_("fkd", tmp_path / "fkd", out, "--size", 48)
    assert (said.code, "another cache" in said.err) == (2, True)
    begun, old = Cache.open(out), tmp_path / "old.zarr"
    Cache.create(old, replace(begun.spec, renderer="kernels-1"), begun.table, 1)
    assert import_("fkd", tmp_path / "fkd", old, "--size", 32).code == 0
    spec = Cache.open(old).spec
    assert (spec.renderer, spec.format_version) == ("kernels-1", "1.1")


def test_fewer_classes_are_kept_on_request(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c", "--size", 32, "--keep", "k=1")
    assert done.code == 0
    store, _ = opened(tmp_path / "c", folder)
    kept, tail = stored_probabilities(store, "n02_3", 0)
    assert list(kept) == [2]
    assert kept[2] + tail == pytest.approx(1)
    assert import_("fkd", tmp_path / "fkd", tmp_path / "d", "--keep", "k=1,t2=2").code == 2


def test_options_that_an_import_requires(sizes: Sizes, tmp_path: Path, kdcache: Command) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    said = kdcache("import", "fkd", tmp_path / "fkd", "--out", tmp_path / "c")
    assert (said.code, "--data" in said.err) == (2, True)
    said = kdcache("import", "dense", tmp_path / "a.npy", "--data", "x", "--out", tmp_path / "c")
    assert said.code == 2


def test_a_teacher_at_chance_level_on_these_labels_is_refused(
    tmp_path: Path, kdcache: Command
) -> None:
    sizes = writers.pictures(tmp_path / "photos", count=70)
    keys = [name.split("/")[1] for name in sizes]
    shifted = [(writers.label_of(name) + 1) % CLASSES for name in sizes]
    writers.tinyvit(tmp_path / "t", keys, shifted)
    command = ("import", "tinyvit", tmp_path / "t", "--data", tmp_path / "photos")
    said = kdcache(*command, "--out", tmp_path / "c")
    assert said.code == 1
    assert "0.00 % of the labels" in " ".join(said.err.split())
    assert kdcache(*command, "--out", tmp_path / "d", "--no-labels", "--classes", 3).code == 0
