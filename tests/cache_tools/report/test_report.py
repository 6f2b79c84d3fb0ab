"""`kdcache report`: its numbers against direct computation; what a stranger's names cannot do."""

import json
import re
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from cache_tools.report import cache_facts, charts, svg, target_stats
from cache_tools.runtime import text as printable
from cache_tools.spec import class_names
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.cache import Cache
from cache_tools.targets import codec, dense
from cache_tools.views import draw as views
from pipeline import recipe as stage1
from pipeline.run import run as make_cache
from tests.helpers.outcome import Outcome
from tests.helpers.reports import Page, student, swept
from train import run_dir
from train.report import history, run_facts

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


def subjects_of(outcome: Outcome) -> list[dict]:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["subjects"]


@pytest.mark.parametrize(
    "spec",
    [
        TargetSpec(k_max=8, tau=1e-2),
        TargetSpec(k_max=8, tau=0.0, tail_square=True),
        TargetSpec(k_max=64, tau=1e-3, k_min=4, temperatures=(1.0,)),
        TargetSpec(k_max=100, k_min=100, tau=0.0),
    ],
)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_what_was_lost_is_within_its_bounds(spec: TargetSpec, scale: float) -> None:
    logits = scale * np.random.default_rng(5).normal(size=(400, 100)) ** 3
    p = dense.softmax(logits)
    sparse = dense.sparsify(logits, spec)
    targets = codec.decode(codec.encode(sparse, spec, 100), spec)
    found = target_stats.measure(targets, spec, 100)
    lost = dense.kl_divergence(p, dense.densify(targets, spec, 100))
    slack = 20 * found.rounded_B + 2e-3 + 0.02 * found.tail_BT[:, 0]  # the codes round, too
    assert (lost <= found.dropped_B + slack).all()
    entropy = float(-(p * np.log(np.maximum(p, 1e-300))).sum(1).mean())
    high = float(found.entropy_B.mean())
    assert high - float(found.dropped_B.mean()) - 0.01 < entropy < high + 0.01
    assert (found.first_B == p.argmax(1)).mean() > 0.97
    if spec.k_max < 100:
        assert found.dropped_B.mean() > 0.5 * lost.mean()
    else:
        assert (found.dropped_B == 0).all()
        assert found.rounded_B.mean() / 2 < lost.mean() < 2 * found.rounded_B.mean()


def test_the_bound_is_reached_by_the_least_even_tail() -> None:
    spec = TargetSpec(k_max=8, tau=0.01)
    p = np.full((1, 1000), 1e-9)
    p[0, 0], p[0, 1:11] = 0.901, 0.0099
    targets = codec.decode(codec.encode(dense.sparsify(np.log(p), spec), spec, 1000), spec)
    lost = dense.kl_divergence(p / p.sum(), dense.densify(targets, spec, 1000))[0]
    assert 0.95 * target_stats.measure(targets, spec, 1000).dropped_B[0] < lost
    assert lost < 1.05 * target_stats.measure(targets, spec, 1000).dropped_B[0]


def test_the_sum_of_squares_tightens_the_bound() -> None:
    spec = TargetSpec(k_max=4, tau=0.0, tail_square=True)
    logits = np.random.default_rng(1).normal(size=(50, 100))
    targets = codec.decode(codec.encode(dense.sparsify(logits, spec), spec, 100), spec)
    blind = codec.DecodedTargets(
        *(vars(targets) | {"square_BQ": targets.square_BQ[:, :0]}).values()
    )
    known, unknown = (target_stats.measure(t, spec, 100).dropped_B for t in (targets, blind))
    assert (known < 0.6 * unknown).all()


def test_the_facts_of_a_cache_against_its_targets(kdcache: Command, digits_cache: Path) -> None:
    facts = subjects_of(kdcache("report", digits_cache, "--json"))[0]
    store = Cache.open(digits_cache)
    first, sure, label = [], [], []
    for view in range(store.num_views):
        targets = codec.decode(store.read_view(view), store.spec.targets)
        at = targets.probability_BK.argmax(1)
        first.append(targets.index_BK[np.arange(100), at])
        sure.append(targets.probability_BK.max(1))
        mixes = [
            views.mix(store.spec.views, store.table.id_N[b : b + store.spec.window], view)
            for b in range(0, 100, store.spec.window)
        ]
        partner = np.concatenate([i * store.spec.window + m.partner_B for i, m in enumerate(mixes)])
        lam = np.concatenate([m.lam_B for m in mixes]) / views.LAMBDA_SCALE
        own = store.table.label_N
        label.append(np.where(lam >= 0.5, own, own[partner]))
    hit = np.stack(first) == np.stack(label)
    calibration = facts["calibration"]
    assert facts["sampled"] == {"views": 400, "of": 400}
    assert calibration["top1"] == pytest.approx(100 * hit.mean())
    assert calibration["confidence"] == pytest.approx(100 * np.stack(sure).mean())
    assert sum(one["views"] for one in calibration["bins"]) == 400
    assert facts["by_view"]["top1"] == pytest.approx((100 * hit.mean(1)).tolist())
    assert not facts["by_view"]["all_views"]  # the records of mixed views say nothing of it
    for name in ("entropy", "kept_mass", "kept_classes"):
        assert sum(facts[name]["counts"]) == 400
    groups = facts["by_strength"]
    assert set(groups) == {"crop_area", "turn_degrees", "own_share"}
    assert all(sum(g["views"] for g in one) == 400 for one in groups.values())
    assert groups["turn_degrees"][-1]["mean"] < 23
    right = sum(g["views"] * g["top1"] for g in groups["crop_area"]) / 400
    assert right == pytest.approx(calibration["top1"])


def test_a_sample_is_reported_as_a_sample(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    facts = subjects_of(kdcache("report", digits_cache, "--limit", 60, "--out", out, "--json"))[0]
    assert facts["sampled"] == {"views": 60, "of": 400}
    text = out.read_text()
    assert "A sample: 60 of 400 stored views" in text
    assert "All classes of every view are kept: only rounding is lost." in text
    assert "Of every view 10 of 10 classes are kept." in text


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


def test_a_run_is_reported_by_class(
    kdcache: Command, finished: Path, digits: Path, tmp_path: Path
) -> None:
    facts = subjects_of(kdcache("report", finished, "--json"))[0]
    seen = kdcache("eval", finished, "--views", 2048, "--json")
    measured = json.loads(seen.out)
    assert facts["measured"]["data"] == measured["data"]
    labels, teacher = facts["answers"]
    assert (labels["due"], teacher["due"]) == ("label", "teacher")
    assert labels["pictures"] == 797
    assert labels["agreement"] == pytest.approx(
        measured["data"][0]["networks"]["student_ema"]["top1"]
    )
    assert teacher["pictures"] == 400
    for one in (labels, teacher):
        counts = np.array(one["matrix"]["counts"])
        assert counts.sum() == one["pictures"]
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(one["agreement"])
    assert len(facts["epochs"]) == 2


def test_confusions_name_synsets(kdcache: Command, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["class_names"] = class_names.synsets(1000)[:10]
    run_dir.write_json(run / "config.json", config)
    facts = subjects_of(kdcache("report", run, "--json"))[0]
    assert facts["answers"][0]["matrix"]["names"][0] == "tench (n01440764)"


def test_confusions_of_many_classes_are_the_worst_ones() -> None:
    pairs = Counter({(c, c): 9 for c in range(1000)} | {(c, c + 1): 1 for c in range(0, 999, 2)})
    pairs[7, 3] = 50
    found = run_facts.classes(pairs, lambda number: f"class {number}")
    assert "matrix" not in found
    assert found["confusions"][0] == {
        "due": "class 7", "answer": "class 3", "times": 50, "share": pytest.approx(100 * 50 / 59),
    }  # fmt: skip
    assert found["worst"][0]["name"] == "class 7"
    assert len(found["worst"]) == 24
    assert found["agreement"] == pytest.approx(100 * 9000 / (9000 + 500 + 50))


def test_several_runs_and_a_folder_of_them(
    kdcache: Command, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "both" / "kd-seed0")
    other = shutil.copytree(finished, tmp_path / "both" / "labels-seed0")
    config = json.loads((other / "config.json").read_text())
    config["recipe"]["mode"] = "labels"
    run_dir.write_json(other / "config.json", config)
    compared = {
        "seeds": [0], "student": "s", "teacher": "t", "transfer_images": 100,
        "kd": {"top1": [93.0], "mean": 93.0, "deviation": 0.0},
        "labels": {"top1": [88.0], "mean": 88.0, "deviation": 0.0},
        "gain": {"each": [5.0], "mean": 5.0, "standard_error": 0.0},
    }  # fmt: skip
    (tmp_path / "both" / "comparison.json").write_text(json.dumps(compared))
    out = tmp_path / "report.html"
    outcome = kdcache("report", tmp_path / "both", "--views", 0, "--out", out)
    assert outcome.out.startswith(f"{out}: 1 comparison, 2 runs, ")
    text = Page(out.read_text()).text
    assert "2 runs" in text
    assert "Gains by seed: +5.0 points" in text
    assert "Gain +5.0 points with one seed." in text
    assert "Its predictions are left out (--views 0)" in text


def test_a_sweep_has_its_front_and_its_cost(kdcache: Command, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    folder = swept(tmp_path / "sweep")
    assert kdcache("report", folder, "--out", out).code == 0
    page = Page(out.read_text())
    assert "5 finished, 1 diverged" in page.text
    assert "small,temperature=4" not in page.text  # the table has a column for each key
    labels = [one["aria-label"] or "" for one in page.having("svg")]
    assert "2 of 5 students are beaten by no other in both: 85.0 % at 100k; 90.0 % at 400k" in (
        next(label for label in labels if "against parameters" in label)
    )
    assert any("Means by temperature: 1: 85.0 %; 4: 76.3 %" in label for label in labels)
    assert "28,800" in page.text
    assert "14.4 ×" in page.text
    assert "<b>bad" in page.text


def test_sixty_runs_and_students_stay_legible(
    kdcache: Command, finished: Path, tmp_path: Path
) -> None:
    """No legend over its chart (matplotlib warns, an error here), no caption of a page."""
    for i in range(60):
        ours = ("tensorboard", "model*")
        folder = tmp_path / "runs" / f"arm{i // 2}-of-a-rather-long-name-seed{i % 2}"
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(*ours))
    sweep = swept(tmp_path / "sweep") / "sweep.json"
    facts = json.loads(sweep.read_text())
    facts["students"] = [
        facts["students"][0] | {"student": f"student number {i}", "temperature": 1 + i / 10,
                                "parameters": 1000 * 1.2**i, "state": "finished\x1b"}
        for i in range(60)
    ]  # fmt: skip
    sweep.write_text(json.dumps(facts))
    out = tmp_path / "report.html"
    outcome = kdcache("report", tmp_path / "runs", sweep.parent, "--views", 0, "--out", out)
    assert outcome.code == 0, outcome.err
    page = Page(out.read_text())
    labels = [one["aria-label"] or "" for one in page.having("svg")]
    assert max(map(len, labels)) < 1200
    assert "Accuracy at the end, the best 40. Of 60 runs" in " ".join(labels)
    assert "arm10-of-a-rather…me-seed1" in page.text
    assert "others" in page.text
    assert "student number 59" in page.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b\N{NO-BREAK SPACE}% 漢字 ♥ é", "a b\N{NO-BREAK SPACE}% 漢字 ♥ é"),
        ("\N{ZERO WIDTH NON-JOINER}می", "\N{ZERO WIDTH NON-JOINER}می"),
        ("two\nlines\tof", "two lines of"),
        ("\x1b[31m\x00\x85\u2028\u202egnp\udcff", "�[31m����gnp�"),
    ],
)
def test_what_is_not_for_the_eye_is_marked(text: str, shown: str) -> None:
    assert printable.printable(text) == shown
    assert printable.printable_json({text: [text, 1.5, None]}) == {shown: [shown, 1.5, None]}


def test_a_sweep_of_strange_values_is_shown_as_it_is(kdcache: Command, tmp_path: Path) -> None:
    strange: dict[str, Any] = {
        "students": [
            {"name": "a", "accuracy": 50, "parameters": [1], "lr": {"x": 1}},
            {"name": ["b"], "accuracy": 51.5, "parameters": "many", "lr": [1, 2]},
        ],
        "swept": ["lr", ["odd"]],
        "ledger": {"x": 1},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(strange))
    out = tmp_path / "report.html"
    assert kdcache("report", tmp_path, "--out", out).code == 0
    assert "{'x': 1}" in Page(out.read_text()).text
    (tmp_path / "sweep.json").write_text('{"students": []}')
    assert kdcache("report", tmp_path, "--out", out).code == 0


def test_a_run_shows_why_it_stopped(kdcache: Command, finished: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(finished, tmp_path / "begun")
    shutil.rmtree(begun / "model")
    (begun / "result.json").rename(begun / "checkpoint.pt")
    rows = [json.dumps({"epoch": epoch, "loss": 1.0}) for epoch in range(900)]
    (begun / "log.jsonl").write_text("\n".join(rows) + "\n")
    (begun / "failed.json").write_text('{"kind": "NonFinite", "error": "the loss is nan"}')
    out = tmp_path / "report.html"
    assert kdcache("report", begun, "--out", out).code == 0
    assert "not finished, after 900 of them (diverged: the loss is nan)" in out.read_text()


def test_a_long_history_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    rows = [{"epoch": i // 100, "step": i, "loss": float(i), "bad": None} for i in range(5000)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + '\n{"step": 50')
    found = history.read(path)
    assert history.MOST <= len(found) < 2 * history.MOST + 1
    assert found[-1]["step"] == 4999
    steps, losses = history.column(found, "step", "loss")
    assert losses == sorted(losses)
    assert all(abs(a - b) < 16 for a, b in zip(steps, losses, strict=True))
    assert history.read(tmp_path / "none") == []


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
    (tmp_path / "old" / "config.json").write_text('{"recipe": {}}')
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


def test_groups_of_a_value_that_hardly_varies() -> None:
    values = np.array([1.0] * 95 + [0.5] * 5)
    groups = cache_facts._groups(values, np.arange(100) < 95)
    assert sum(group["views"] for group in groups) == 100


def test_few_views_are_no_certainty() -> None:
    assert cache_facts._top1(np.ones(4, bool))["error"] > 15
    assert cache_facts._top1(np.arange(1000) < 900)["error"] == pytest.approx(0.95, abs=0.01)
    assert len(cache_facts._groups(np.arange(60.0), np.ones(60, bool))) == 2
