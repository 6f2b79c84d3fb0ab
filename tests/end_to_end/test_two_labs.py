"""The whole way from one lab to another: the guide's section on published caches."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_tools.data.open import open_images
from cache_tools.storage import fsspec_client
from cache_tools.store.cache import Cache
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.folders import write
from tests.helpers.outcome import Outcome
from tests.helpers.paths import ROOT
from tests.helpers.range_server import RangeServer, serve
from tests.helpers.sizes import needed

Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_client, "FIRST_PAUSE", 0.001)


@pytest.fixture
def lab_a(tmp_path: Path, digits: Path, teacher: Path) -> Iterator[RangeServer]:
    """A cache of ten views over tar shards, served."""
    out = tmp_path / "a/cache.zarr"
    out.parent.mkdir()
    run(recipes.load("digits", ["num_views=10"]), str(digits), str(teacher), out, "cpu")
    with serve(out.parent) as server:
        yield server


def test_lab_b_trains_from_a_third_of_lab_as_views(
    lab_a: RangeServer, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    """An ImageFolder in another order, three of ten views, half the classes, a bad network."""
    url, out, there = f"{lab_a.url}/cache.zarr", tmp_path / "b.zarr", tmp_path / "a/cache.zarr"
    asked = ("--views", "0:3", "--keep", "k=5")
    assert kdcache("pull", url, tmp_path / "quiet.zarr", *asked).code == 0
    assert abs(lab_a.sent / needed(there, range(3)) - 1) < 0.05
    lab_a.trouble = lambda number, path: {3: "flip", 5: "cut", 7: "500"}.get(number % 9, "")
    said = kdcache("pull", url, out, *asked)
    assert said.code == 0, said.err
    for name in (p.relative_to(out) for p in out.rglob("*") if p.is_file()):
        assert (out / name).read_bytes() == (tmp_path / "quiet.zarr" / name).read_bytes()
    folder = write(open_images(str(digits), "train"), tmp_path / "images", [*range(100)])
    said = kdcache("verify", out, "--data", folder)
    assert said.code == 0, said.out
    assert "3 parts, 100 images, 12 rendered views" in said.out
    where = ("--cache", out, "--data", folder, "--out", tmp_path / "run")
    said = kdcache("train", "digits", *where, "epochs=1", "views_per_epoch=3", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["cache_fingerprint"] == Cache.open(out).spec.fingerprint
    assert Cache.open(out).spec.cut_from


@pytest.mark.slow
def test_the_section_of_the_guide_works_as_written(
    digits: Path, teacher: Path, tmp_path: Path
) -> None:
    """Every command of it, in a folder with data and cache where `make cache` puts them."""
    guide = (ROOT / "docs/guide/sharing.md").read_text("utf-8")
    section = guide.split("## Download and train from a published cache")[1].split("\n## ")[0]
    cell = section.split("```sh\n")[1].split("```")[0]
    shutil.copytree(digits, tmp_path / "build/digits")
    out = tmp_path / "build/digits-cache.zarr"
    run(recipes.load("digits"), str(tmp_path / "build/digits"), str(teacher), out, "cpu")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    call = ["bash", "-euxc", f"trap 'kill $SERVER || true' EXIT\n{cell}\ntrap - EXIT"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: ") == 2
