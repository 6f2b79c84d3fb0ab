"""`kdcache report`: a page that needs nothing else, and what a stranger's names cannot do."""

import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from cache_tools.report import charts, svg
from pipeline import recipe as stage1
from pipeline.run import run as make_cache
from tests.helpers.outcome import Outcome
from tests.helpers.reports import Page, student, subjects_of, swept
from train import run_dir

Command = Callable[..., Outcome]
HOSTILE = (
    "<img src=x onerror=alert(1)>", "<script>alert(2)", "a & b", "\"'><b>bold", "$\\frac{1}{",
    "{{ 7*7 }}", "漢字 ♥", "cat", "x" * 120, "'-alert(3)-'\n\x1b[31m\x01\u202e",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(digits_cache, tmp_path_factory.mktemp("run") / "kd-seed0")


@pytest.fixture(scope="module")
def hostile(digits: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of class folders whose names are attacks, and a run of classes of these names."""
    root = tmp_path_factory.mktemp("hostile")
    with tarfile.open(digits / "digits-train-0000.tar") as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    for name in sorted(name for name in content if name.endswith(".png"))[:60]:
        folder = root / "data" / HOSTILE[int(content[name[:-3] + "cls"])]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name[:-4]}<i>.png").write_bytes(content[name])
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(model, str(root / "teacher"), safe_serialization=True)
    recipe = stage1.load("digits", ["num_views=2", "dataset.num_samples=60"])
    make_cache(recipe, str(root / "data"), str(root / "teacher"), root / "cache.zarr", "cpu")
    shutil.copytree(finished, root / "run")
    config = json.loads((root / "run" / "config.json").read_text())
    run_dir.write_json(root / "run" / "config.json", config | {"class_names": HOSTILE})
    return root


def test_every_chart_has_its_finding_and_the_page_needs_nothing(
    kdcache: Command, digits_cache: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    outcome = kdcache("report", digits_cache, finished, swept(tmp_path / "sweep"), "--out", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out}: 1 cache, 1 run, 1 sweep, ")
    text = out.read_text()
    page = Page(text)
    drawn = page.having("svg")
    assert len(drawn) >= 18
    for one in drawn:
        assert one["role"] == "img"
        assert re.search(r"\d", one["aria-label"] or ""), one
    assert len({one["aria-label"] for one in drawn}) == len(drawn)
    sheet = page.having("img")
    assert len(sheet) == 1
    assert (sheet[0]["src"] or "").startswith("data:image/jpeg;base64,")
    assert "digit_" in (sheet[0]["alt"] or "")
    assert not page.having("script")
    addresses = set(re.findall(r"https?://[^\"' <]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len({*ids})
    colours = re.findall(r"(?:fill|stroke): (#\w+)", text)
    assert not colours  # all are the page's, of which there are two sets


def test_names_of_strangers_stay_text(kdcache: Command, hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    outcome = kdcache("report", hostile / "cache.zarr", hostile / "run", "--out", out)
    assert outcome.code == 0, outcome.err
    text = out.read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "b", "iframe", "object", "form", "base"}
    assert all((a["href"] or "").startswith("#") for a in page.having("a"))
    assert all((i["src"] or "").startswith("data:image/jpeg") for i in page.having("img"))
    assert not [a for _, a in page.tags for name in a if name.startswith("on")]
    policy = [m["content"] for m in page.having("meta") if "Content-Security" in str(m)]
    assert "default-src 'none'" in (policy[0] or "")
    assert "{{ 7*7 }}" in page.text
    for name in HOSTILE[:8]:
        assert name in page.text, name
    assert not set(text) & set("\x1b\x01\u202e")


def test_missing_facts_are_reported(
    kdcache: Command, mutable_cache: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    Path(f"{mutable_cache}.source").write_text(f"{tmp_path}/elsewhere\n")
    shutil.rmtree(mutable_cache / "commits" / "v0003")
    begun = tmp_path / "begun"
    shutil.copytree(finished, begun)
    shutil.rmtree(begun / "model")
    (begun / "result.json").rename(begun / "checkpoint.pt")
    outcome = kdcache("report", mutable_cache, begun, "--out", out)
    assert outcome.code == 0, outcome.err
    text = Page(out.read_text()).text
    assert "parts are not committed yet" in text
    assert "No contact sheet: there is no data set at" in text
    assert "not finished, after 2 of them" in text
    assert "Its predictions are left out: the run" in text
    assert "No contact sheet" not in (kdcache("report", mutable_cache, "--no-images", "--json").out)
    shutil.rmtree(mutable_cache / "commits")
    assert kdcache("report", mutable_cache, "--out", out).code == 0
    assert "No part is committed yet" in out.read_text()


def test_logits_that_were_imported_have_no_views_to_look_at(
    kdcache: Command, tmp_path: Path
) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32) * 3
    np.save(tmp_path / "logits.npy", logits)
    kdcache("import", "dense", tmp_path / "logits.npy", "--out", tmp_path / "c.zarr")
    out = tmp_path / "report.html"
    assert kdcache("report", tmp_path / "c.zarr", "--out", out).code == 0
    text = Page(out.read_text()).text
    assert "The cache has no labels" in text
    assert "No contact sheet" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{cache}"], 2, ["--out report.html"]),
        (["{tmp}/nothing", "--json"], 2, ["there is no cache, run or sweep at", "nothing"]),
        (["{cache}", "--out", "{tmp}"], 2, ["is a folder"]),
        (["{tmp}/odd", "--out", "{tmp}/r.html"], 2, ["lists no students"]),
        (["{tmp}/broken", "--out", "{tmp}/r.html"], 2, ["sweep.json cannot be read"]),
        (["{tmp}/old", "--out", "{tmp}/r.html"], 1, ["made by an earlier kdcache"]),
        (["{cache}", "--data", "{tmp}/no", "--out", "{tmp}/r.html"], 2, ["there is no data set"]),
    ],
)
def test_mistakes_are_explained(
    kdcache: Command,
    digits_cache: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    for name, text in (("odd", '{"students": 3}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").write_text(text)
    (tmp_path / "old").mkdir()
    former = {"recipe": {"student": "a", "epochs": 1}, "num_views": 4, "view_size": 32}
    former |= {"cache": "c.zarr", "data": "data"}
    (tmp_path / "old" / "config.json").write_text(json.dumps(former))
    outcome = kdcache("report", *(a.format(cache=digits_cache, tmp=tmp_path) for a in arguments))
    assert outcome.code == code
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "r.html").exists()


def test_a_damaged_part_is_named(kdcache: Command, mutable_cache: Path, tmp_path: Path) -> None:
    chunk = max(p for p in (mutable_cache / "targets" / "code" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(bytes(chunk.stat().st_size))
    outcome = kdcache("report", mutable_cache, "--out", tmp_path / "r.html")
    assert outcome.code == 1
    assert "damaged" in outcome.err


def test_without_its_libraries_the_extra_is_named(
    kdcache: Command, digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = kdcache("report", digits_cache, "--out", tmp_path / "r.html")
    assert outcome.code == 2
    assert "pip install 'kdcache[report]'" in outcome.err
    assert subjects_of(kdcache("report", digits_cache, "--json"))


def test_a_chart_takes_any_name_and_is_the_same_every_time() -> None:
    names = [*HOSTILE, "]]>", "&lt;"]

    def draw(axes: Any) -> None:
        charts.bars(axes, names, [1.0] * len(names), [], "x")

    drawn = svg.chart("t", "1 finding", draw)
    assert drawn == svg.chart("t", "1 finding", draw)
    text = Page(drawn.svg).text
    assert all(charts.short(name) in text for name in names)
