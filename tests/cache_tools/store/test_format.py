"""FORMAT.md says what the code does: vectors, layout, strangers' readers, old caches."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_tools.data.open import open_images
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.render.view import fingerprint
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store import layout, view_params
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense
from tests.helpers import foreign_files
from tests.helpers.paths import FIXTURES, ROOT

FORMAT = (ROOT / "cache_tools/FORMAT.md").read_text("utf-8")
GUIDE = (ROOT / "docs/guide/own-trainer.md").read_text("utf-8")


def rows(section: str) -> list[list[str]]:
    """Cells of the table in a section of FORMAT.md, without its head."""
    text = FORMAT.split(section)[1].split("\n#")[0]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def test_the_vector_of_targets() -> None:
    spec_ = TargetSpec(k_max=4, tau=0.02, true_class=True, tail_square=True)
    table = [[[float(x.replace("−", "-")) for x in cell.split()] for cell in row]
             for row in rows("### 4.5 Test vector")]  # fmt: skip
    logits = np.array([row[0] for row in table], "f4")
    found = codec.encode(dense.sparsify(logits, spec_, np.array([[4], [9], [1]])), spec_, 10)
    begin = found.begin_B1
    for i, (_, count, delta, code, tail, true, square) in enumerate(table):
        entries = slice(begin[i], begin[i + 1])
        assert found.count_B[i] == count[0]
        assert found.index_delta_E[entries].tolist() == delta
        assert found.code_E[entries].tolist() == code
        assert found.tail_TB[:, i].tolist() == tail
        assert found.true_PB[:, i].tolist() == true
        assert found.square_QB[:, i].tolist() == square
    text = FORMAT.split("As bytes: ")[1].split("Of equal")[0]
    fields = {"count": "count_B", "index_delta": "index_delta_E", "code": "code_E"}
    fields |= {"tail": "tail_TB", "true": "true_PB", "square": "square_QB"}
    for name, value in re.findall(r"`(\w+)`\s+([0-9a-f\s]+)[;.]", text):
        assert getattr(found, fields.pop(name)).tobytes().hex() == "".join(value.split())
    assert not fields


def test_canonical_json_is_that_of_the_format() -> None:
    value = {"b": [1, 2.5, 1e-3], "a": "ä", "c": {"z": None, "y": True}}
    assert f"`{canonical_json(value).decode()}`" in FORMAT
    assert sha256(canonical_json(value))[7:23] in FORMAT


def test_the_layout_names_every_array(digits_cache: Path) -> None:
    named = set(re.findall(r"`((?:targets|probes|samples)/\w+)`", FORMAT.split("## 2.")[0]))
    everything = TargetSpec(k_max=4, true_class=True, tail_square=True)
    full = replace(Cache.open(digits_cache).spec, targets=everything)
    assert {f.name for f in layout.fields(full)} <= named
    of_imports = ImportedSpec("x", "", 1, 1, seeds=True)
    imports = replace(
        full, imported=of_imports, views=ViewSpec(32, hflip=0.0, mixup=1.0, cutmix=1.0)
    )
    said = set(re.findall(r"`(views/\w+)`", FORMAT.split("### 3.6")[1].split("\n## ")[0]))
    assert {f.name for f in layout.fields(imports)} - named == said
    nodes = {str(path.parent.relative_to(digits_cache)) for path in digits_cache.rglob("zarr.json")}
    assert nodes <= named | {".", "samples", "targets", "probes", "commits"}


def cell_result(python: str, cache: Path, view: int, row: int) -> dict[str, list[float]]:
    """What the cell of the guide reads, under another Python, as JSON."""
    cell = GUIDE.split("## Reading a cache without")[1].split("```python\n")[1].split("```")[0]
    cell = cell.replace("build/digits-cache.zarr", str(cache))
    cell = cell.replace("view, row = 2, 17", f"view, row = {view}, {row}")
    cell += "\nimport json; print('RESULT', json.dumps([index.tolist(), p.tolist(), float(tail)]))"
    run = subprocess.run([python, "-c", cell], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.rpartition("RESULT ")[2])


def newer_python() -> str:
    """A working Python 3.12 or later that is not ours, from PATH or from pyenv; "" without one."""
    names = [f"python3.{minor}" for minor in (15, 14, 13, 12)]
    installed = sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python"), reverse=True)
    for python in [*filter(None, map(shutil.which, names)), *map(str, installed)]:
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("zarr", ["zarr==3.1.*", "zarr"])
def test_strangers_read_the_same(zarr: str, digits_cache: Path, tmp_path: Path) -> None:
    """Nothing but numpy and zarr: 3.1 on our Python, and the newest that a newer one finds."""
    python = sys.executable if "==" in zarr else newer_python()
    if not python:
        pytest.skip("no Python 3.12 or later is on this machine")
    subprocess.run([python, "-m", "venv", tmp_path / "v"], check=True)
    pip = [tmp_path / "v/bin/pip", "install", "-q", "--disable-pip-version-check", zarr]
    subprocess.run(pip, check=True)
    store = Cache.open(digits_cache)
    for view, row in ((0, 0), (3, 99), (2, 17)):
        index, p, tail = cell_result(str(tmp_path / "v/bin/python"), digits_cache, view, row)
        ours = codec.decode(store.read(Part(view, 0))[0], store.spec.targets, np.array([row]))
        assert ours.index_BK[0, : len(index)].tolist() == index
        assert np.allclose(ours.probability_BK[0, : len(index)], p, atol=1e-7)
        assert ours.tail_BT[0, 0] == tail


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_caches_of_every_version_are_read_for_ever(version: str) -> None:
    """A cache committed once, with its decoded values beside it; see tests/fixtures/README.md."""
    fixture = FIXTURES / f"cache-v{version}"
    store, truth = Cache.open(fixture), np.load(fixture.with_name(f"{fixture.name}.npz"))
    assert store.spec.format_version == version
    assert store.table.keys == tuple(truth["keys"].tolist())
    for view in range(store.num_views):
        targets = codec.decode(store.read_view(view), store.spec.targets)
        for name, value in vars(targets).items():
            assert np.allclose(value, truth[f"{name}_{view}"], rtol=1e-6, atol=0), name
        stored = ("box_BP4", "arguments_BPL6", "weight_B", "cut_B4")
        for name in stored if store.spec.imported else ():
            params = store.read_params(Part(view, 0))
            assert np.array_equal(getattr(params, name), truth[f"{name}_{view}"]), name
    assert store.spec.fingerprint == str(truth["fingerprint"])
    assert store.content_id() == str(truth["content_id"])


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_caches_of_every_version_are_replayed_for_ever(
    version: str, digits: Path, tmp_path: Path
) -> None:
    """The pixels of their time, by the renderer of each: crops of the digits are all enlarged."""
    store = Cache.open(FIXTURES / f"cache-v{version}")
    assert store.spec.renderer == ("kernels-2" if version == "1.2" else "kernels-1")
    if store.spec.imported:
        foreign_files.pictures(tmp_path)
    images = open_images(str(tmp_path if store.spec.imported else digits), "train")
    rows = [images.keys()[1].index(key) for key in store.table.keys]
    renderer = ViewRenderer(images.subset(np.array(rows)), store.spec.views, None)
    for part in store.parts():
        at = np.array(probe_numbers(store.spec.rows(part.block)))
        params = view_params.parameters(store, part.view, at)
        pixels = [renderer.render_one(int(row), params, i) for i, row in enumerate(at)]
        assert [fingerprint(p) for p in pixels] == store.read(part)[1].tolist()
