"""`kdcache eval` against the same figures computed directly, densely, with timm and torch alone."""

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch.nn import functional as F

from cache_tools.data.beton import writer
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheMismatch
from cache_tools.render import mixing
from cache_tools.store.cache import Cache
from cache_tools.store.sampling import sample_views
from cache_tools.targets import dense, statistics
from tests.helpers.outcome import Outcome
from train import recipe as recipes
from train import run_dir
from train.data import create_loader
from train.data.inputs import open_inputs
from train.data.schedule import Schedule
from train.evaluate import agreement, crops, models
from train.evaluate.models import EvalOptions
from train.trainer import loop

Command = Callable[..., Outcome]
FAST = ["epochs=1", "views_per_epoch=2", "batch_size=40"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the mixed cache, and its moving average."""
    out = tmp_path_factory.mktemp("run") / "run"
    recipe, inputs = recipes.load("digits", FAST), open_inputs(digits_cache, None)
    run_dir.init_run(out, recipe, inputs, fresh=False)
    loop.train(recipe, inputs, out, CPU)
    return out


@pytest.fixture(scope="module")
def numbered(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 validation digits laid out and named as ImageNet-V2 is: a folder per class number."""
    root = tmp_path_factory.mktemp("numbered") / "format-val"
    unpack_numbered(digits / "digits-validation-0000.tar", root, 60)
    return root


def unpack_numbered(tar: Path, root: Path, count: int | None = None) -> None:
    """The first pictures of a shard in folders named by their class."""
    with tarfile.open(tar) as shard:
        content = {m.name: shard.extractfile(m).read() for m in shard if m.isfile()}
    for name in sorted(name for name in content if name.endswith(".png"))[:count]:
        folder = root / content[name[:-3] + "cls"].decode()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content[name])


@torch.inference_mode()
def logits(model: Path, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What a saved network says of numbered folders, and their labels."""
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    files = sorted(root.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    mean, std = (torch.tensor(network.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    return network(x), torch.tensor([int(file.parent.name) for file in files])


def facts_of(outcome: Outcome) -> dict:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def fails(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words), outcome.err


def test_student_average_and_teacher_against_dense_computation(
    kdcache: Command, finished: Path, numbered: Path, teacher: Path
) -> None:
    facts = facts_of(
        kdcache("eval", finished, "--data", numbered, "--teacher", teacher, "--force", "--json")
    )
    scores = facts["data"][0]["networks"]
    of_teacher, label = logits(teacher, numbered)
    for name, place in (("student", "model"), ("student_ema", "model-ema"), ("teacher", None)):
        own = logits(finished / place, numbered)[0] if place else of_teacher
        ranked = own.argsort(1, descending=True)
        assert scores[name]["images"] == 60
        one = (ranked[:, 0] == label).sum()
        assert scores[name]["top1"] == pytest.approx(100 * float(one) / 60)
        five = (ranked[:, :5] == label[:, None]).any(1).sum()
        assert scores[name]["top5"] == pytest.approx(100 * float(five) / 60)
        if place:
            kl = F.kl_div(own.log_softmax(1), of_teacher.softmax(1), reduction="batchmean")
            assert scores[name]["kl"] == pytest.approx(float(kl), rel=1e-4)
            agreed = (own.argmax(1) == of_teacher.argmax(1)).sum()
            assert scores[name]["agreement"] == pytest.approx(100 * float(agreed) / 60)
    assert scores["teacher"]["kl"] is None
    assert facts["top1"] == round(scores["student"]["top1"], 3)
    assert facts["top1_ema"] == round(scores["student_ema"]["top1"], 3)
    first = logits(finished / "model-ema", numbered)[0].argmax(1)
    counts = Counter(zip(label.tolist(), first.tolist(), strict=True))
    confusions = facts["data"][0]["confusions"]
    assert 0 < len(confusions) <= 3
    for one in confusions:
        due, answer = (int(one[key].removeprefix("class ")) for key in ("due", "answer"))
        assert due != answer
        assert one["times"] == counts[due, answer]
        assert one["share"] == pytest.approx(100 * one["times"] / int((label == due).sum()))
    shown = kdcache("eval", finished, "--data", numbered, "--views", 0).out
    assert f"most frequent confusions: {confusions[0]['due']} → " in shown


def test_a_network_of_timm_is_measured_as_timm_measures_it(
    kdcache: Command, numbered: Path, tmp_path: Path
) -> None:
    """Its size and crop of tests, its filter; the whole image is resized before the crop."""
    torch.manual_seed(2)
    of_tests = {"test_input_size": (3, 48, 48), "test_crop_pct": 0.9, "crop_mode": "squash"}
    known = {"interpolation": "bilinear", "input_size": (3, 32, 32), **of_tests}
    network = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay=known).eval()
    save_for_hf(network, str(tmp_path / "model"), safe_serialization=True)
    config = resolve_data_config({}, model=network, use_test_size=True)
    assert config["input_size"] == (3, 48, 48)
    transform, files = create_transform(**config), sorted(numbered.glob("*/*.png"))
    x = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    network = models.open_target(str(tmp_path / "model"), EvalOptions(CPU)).students[0]
    seen = np.stack([network.frame.cropped(np.asarray(Image.open(file))) for file in files])
    assert torch.allclose(network.feed.normalise(network.feed.upload(seen)), x, atol=1e-6)
    with torch.inference_mode():
        first = network.model(x).argmax(1)
    facts = facts_of(kdcache("eval", tmp_path / "model", "--data", numbered, "--json"))
    right = [int(c) == int(file.parent.name) for c, file in zip(first, files, strict=True)]
    assert facts["top1"] == pytest.approx(100 * np.mean(right), abs=1e-3)
    names = ("view_size", "crop", "interpolation", "crop_mode")
    assert [facts[name] for name in names] == [48, 0.9, "bilinear", "squash"]
    asked = kdcache("eval", tmp_path / "model", "--data", numbered, "--size", 40, "--crop", 0.8)
    assert "validate.py prepares them: 40 px, bilinear, crop 0.8 (squash)" in asked.out


def test_cached_views_against_replay_and_dense_computation(
    finished: Path, digits_cache: Path, images: ImageDataset
) -> None:
    """All 400 mixed views, as the training loop replays them, and dense distributions."""
    store = Cache.open(digits_cache)
    network = models.open_target(str(finished), EvalOptions(CPU)).students[0]
    schedule = Schedule(store, 4, 100, seed=0)
    kl, agreed, right = [], [], []
    for batch in create_loader.native(store, images, schedule, 2).epoch(0):
        both = batch.pixels, batch.partner
        own, other = (torch.from_numpy(p).permute(0, 3, 1, 2).float() for p in both)
        lam, cut = torch.from_numpy(batch.lam_B), torch.from_numpy(batch.cut_B4)
        x = network.feed.normalise(mixing.mix(own, other, lam, cut, torch.arange(32)))
        with torch.inference_mode():
            said = dense.softmax(network.model(x).numpy())
        stored = dense.densify(batch.targets, store.spec.targets, 10)
        kl.extend(dense.kl_divergence(stored, said))
        first = said.argmax(1)
        agreed.extend(stored[np.arange(100), first] == stored.max(1))
        label = np.where(batch.lam_B >= 32768, batch.label_B, batch.partner_label_B)
        right.extend(first == label)
    seen = agreement.measure([network], store, images, 400)
    assert (seen.views, seen.parts) == (400, len(list(store.parts())))
    scores = seen.scores["student"]
    assert scores.kl == pytest.approx(np.mean(kl), rel=1e-4)
    assert scores.agreement == pytest.approx(100 * np.mean(agreed))
    assert scores.top1 == pytest.approx(100 * np.mean(right))
    assert scores.ece is None  # a mixed view has no right class to be calibrated on


def test_the_teacher_as_its_own_student(
    kdcache: Command, digits: Path, teacher: Path, digits_cache: Path
) -> None:
    """Through the cache only codes lie between them, on the validation pictures nothing."""
    arguments = (
        "--data",
        digits,
        "--cache",
        digits_cache,
        "--force",
        "--teacher",
        teacher,
        "--size",
        32,
        "--crop",
        1,
    )
    facts = facts_of(kdcache("eval", teacher, *arguments, "--json"))
    own = facts["data"][0]["networks"]["student"]
    assert own["agreement"] == 100
    assert own["kl"] == pytest.approx(0, abs=1e-9)
    assert own["top1"] == facts["data"][0]["networks"]["teacher"]["top1"]
    seen = facts["cache"]["networks"]["student"]
    assert facts["cache"]["views"] == 400
    assert seen["agreement"] == 100
    assert 0 < seen["kl"] < 1e-3


@pytest.mark.parametrize("count", [1, 7, 64, 65, 1000, 10_000, 2**31])
@pytest.mark.parametrize(("num_samples", "num_views"), [(3, 1), (100, 4), (5000, 300)])
def test_views_are_spread_over_parts(count: int, num_samples: int, num_views: int) -> None:
    blocks = [range(b, min(b + 64, num_samples)) for b in range(0, num_samples, 64)]
    parts = [SimpleNamespace(view=v, block=b) for v in range(num_views) for b in range(len(blocks))]
    spec = SimpleNamespace(rows=lambda b: blocks[b])
    chosen = sample_views(spec, parts, count)
    total = min(count, num_samples * num_views)
    seen = {(part.view, row) for part, rows in chosen for row in rows.tolist()}
    assert len(seen) == sum(len(rows) for _, rows in chosen) == total
    assert all(set(rows.tolist()) <= set(blocks[part.block]) for part, rows in chosen)
    assert len(chosen) >= min(64, len(parts), total) // 2  # 65 views: 33 parts of two
    if num_views == 300 and count >= 64:
        assert len({row // 64 for _, row in seen}) > 20  # other samples, too
        views = sorted(part.view for part, _ in chosen)
        assert max(np.diff([0, *views, 299])) < 30


def test_several_data_sets_a_row_each(
    kdcache: Command, finished: Path, numbered: Path, digits: Path, teacher: Path
) -> None:
    arguments = ("eval", finished, "--data", digits, "--data", numbered)
    arguments = (*arguments, "--teacher", teacher, "--force")
    facts = facts_of(kdcache(*arguments, "--json"))
    assert [d["networks"]["student"]["images"] for d in facts["data"]] == [797, 60]
    result = json.loads((finished / "result.json").read_text())
    assert (facts["top1"], facts["top1_ema"]) == (result["top1"], result["top1_ema"])
    lines = kdcache(*arguments).out.splitlines()
    assert lines[0].split() == ["top-1", "top-5", "ECE", "agrees", "KL"]
    assert lines[1].startswith(f"{digits} (797 images)")
    assert f"{facts['top1']:.1f}" in lines[1]
    assert lines[4].startswith(f"{numbered} (60 images)")
    assert sum("student, EMA" in line for line in lines) == 3
    assert "400 cached views (4 parts)" in lines[7]
    assert "teacher, as stored" in lines[9]
    assert any("15 bins" in line for line in lines[10:])


def test_a_student_folder_of_a_run_is_seen_as_the_run_sees_it(
    kdcache: Command, finished: Path, digits: Path
) -> None:
    """timm's config of the student says 160 pixels, which it has never seen."""
    own = facts_of(kdcache("eval", finished / "model-ema", "--json"))
    assert own["view_size"] == 32
    assert own["top1"] == facts_of(kdcache("eval", finished, "--views", 0, "--json"))["top1_ema"]


def test_real_labels_leave_out_pictures_without_any(
    kdcache: Command, finished: Path, numbered: Path, tmp_path: Path
) -> None:
    own, label = logits(finished / "model", numbered)
    names = [file.name for file in sorted(numbered.glob("*/*.png"))]
    allowed = [[] if i % 3 == 0 else [int(c), (int(c) + 1) % 10] for i, c in enumerate(label)]
    file = tmp_path / "real.json"
    file.write_text(json.dumps(dict(zip(names, allowed, strict=True))))
    arguments = ("eval", finished, "--data", numbered, "--real", file, "--views", 0)
    scores = facts_of(kdcache(*arguments, "--json"))["data"][0]["networks"]["student"]
    right = [int(c) in a for c, a in zip(own.argmax(1), allowed, strict=True) if a]
    assert scores["real_images"] == len(right) == 40
    assert scores["real_top1"] == pytest.approx(100 * np.mean(right))
    assert " ReaL " in kdcache(*arguments).out
    file.write_text(json.dumps(dict(zip(names[1:], allowed[1:], strict=True))))
    fails(kdcache(*arguments), 1, "lack 1 of the 60 images", names[0][:-4])
    fails(kdcache(*arguments[:-3], "timm"), 1, "contain no image of the data sets")


def test_a_thousand_classes_by_number(kdcache: Command, numbered: Path, tmp_path: Path) -> None:
    """Folder 10 is class 10 although it stands before 2 and eight classes are not there."""
    root = tmp_path / "v2"
    for old, new in (("1", "10"), ("2", "2"), ("9", "999")):
        shutil.copytree(numbered / old, root / new)
    model = timm.create_model("test_resnet", num_classes=1000)
    with torch.no_grad():  # it says 10 whatever it sees, then 999
        model.get_classifier().weight.zero_()
        model.get_classifier().bias.copy_(torch.eye(1000)[10] * 9 + torch.eye(1000)[999])
    save_for_hf(model, str(tmp_path / "model"), safe_serialization=True)
    facts = facts_of(kdcache("eval", tmp_path / "model", "--data", root, "--size", 32, "--json"))
    counts = [len(list((root / name).iterdir())) for name in ("10", "2", "999")]
    assert facts["top1"] == pytest.approx(100 * counts[0] / sum(counts), abs=1e-3)
    # ties beyond the first two classes go to low numbers: 2 may be among the five, 999 is
    assert facts["top5"] >= round(100 * (counts[0] + counts[2]) / sum(counts), 3)


def test_a_cache_that_is_gone_or_another_is_left_out_unless_named(
    kdcache: Command, finished: Path, mutable_cache: Path, tmp_path: Path
) -> None:
    away = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((away / "config.json").read_text())
    run_dir.write_json(away / "config.json", config | {"cache": str(tmp_path / "gone")})
    assert facts_of(kdcache("eval", away, "--json"))["cache"] is None
    assert (
        facts_of(kdcache("eval", away, "--cache", mutable_cache, "--json"))["cache"]["views"] == 400
    )
    other = config | {"cache": str(mutable_cache), "cache_fingerprint": "sha256:other"}
    run_dir.write_json(away / "config.json", other)
    outcome = kdcache("eval", away, "--json")
    assert facts_of(outcome)["cache"] is None
    assert "differs from the cache" in outcome.err
    run_dir.write_json(away / "config.json", config | {"cache": str(mutable_cache)})
    next(mutable_cache.glob("commits/v0001/*.json")).unlink()
    outcome = kdcache("eval", away, "--json")
    assert facts_of(outcome)["cache"] is None
    assert "view 1" in outcome.err
    fails(kdcache("eval", away, "--cache", mutable_cache), 1, "CacheIncomplete", "view 1")


def test_other_pixels_are_refused(
    finished: Path, digits_cache: Path, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache_tools.render import view

    network = models.open_target(str(finished), EvalOptions(CPU)).students[0]
    real = view.crop_resize

    def other(*arguments: object) -> None:
        real(*arguments)
        arguments[-1][:] ^= 1  # type: ignore[index]

    monkeypatch.setattr(view, "crop_resize", other)
    with pytest.raises(CacheMismatch, match="other pixels"):
        agreement.measure([network], Cache.open(digits_cache), images, 10)


def test_mistakes_are_explained(
    kdcache: Command,
    finished: Path,
    digits_cache: Path,
    numbered: Path,
    digits: Path,
    teacher: Path,
    tmp_path: Path,
) -> None:
    fails(kdcache("eval", tmp_path / "none"), 2, "no run at", "and no network")
    fails(kdcache("eval", "resnet5o"), 2, "no network 'resnet5o'", "Did you mean")
    fails(kdcache("eval", teacher), 2, "missing --data. Pass --data")
    fails(kdcache("eval", finished, "--data", tmp_path / "none"), 2, "no data set at")
    fails(kdcache("eval", finished, "--cache", tmp_path / "none"), 2, "CacheNotFound")
    fails(kdcache("eval", finished, "--teacher", tmp_path / "none"), 1, "TeacherError")
    fails(kdcache("eval", finished, "--crop", "1.5"), 2, "crop=1.5 (--crop) is no share")
    fails(kdcache("eval", finished, "--device", "hope"), 2, "device hope cannot be used")
    fails(kdcache("eval", finished, "--real", tmp_path / "none"), 2, "--real timm")
    flat = shutil.copytree(numbered / "3", tmp_path / "flat")
    fails(kdcache("eval", finished, "--data", flat), 2, "there is no label for", "10 classes")
    shutil.copytree(numbered / "3", tmp_path / "many/10")
    fails(kdcache("eval", finished, "--data", tmp_path / "many"), 2, "labels up to 10")
    shutil.copytree(numbered / "3", tmp_path / "named/tench")
    outcome = kdcache("eval", finished, "--data", tmp_path / "named")
    fails(outcome, 2, "there is 1 class folders", "class number, 0 .. 9")
    shutil.copytree(numbered, tmp_path / "half/train")
    fails(kdcache("eval", finished, "--data", tmp_path / "half"), 2, "a train split only")
    other = timm.create_model("test_resnet", num_classes=7)
    save_for_hf(other, str(tmp_path / "seven"), safe_serialization=True)
    outcome = kdcache("eval", finished, "--teacher", tmp_path / "seven")
    fails(outcome, 2, "has 7 classes, the student has 10")
    outcome = kdcache("eval", tmp_path / "seven", "--cache", digits_cache, "--data", digits)
    fails(outcome, 2, "is of 10 classes, the student has 7")
    with torch.no_grad():
        other.get_classifier().bias[3] = float("nan")
    save_for_hf(other, str(tmp_path / "seven"), safe_serialization=True)
    (tmp_path / "few/3").mkdir(parents=True)
    shutil.copy(next((numbered / "3").iterdir()), tmp_path / "few/3")
    outcome = kdcache("eval", tmp_path / "seven", "--data", tmp_path / "few")
    fails(outcome, 1, "NonFinite", "the student predicts NaN or Inf in fp32")
    broken = shutil.copytree(finished, tmp_path / "broken")
    (broken / "model/model.safetensors").write_bytes(b"half a file")
    fails(kdcache("eval", broken), 1, "CacheDamaged", "model.safetensors is damaged")
    (broken / "digests.json").unlink()
    fails(kdcache("eval", broken), 1, "TeacherError", "does not contain a network")


def test_a_run_without_validation_still_has_its_cache(
    kdcache: Command, finished: Path, digits: Path, tmp_path: Path
) -> None:
    """The 100 transfer digits alone, as class folders: nothing is measured on what it learned."""
    run_, data = shutil.copytree(finished, tmp_path / "run"), tmp_path / "data"
    unpack_numbered(digits / "digits-train-0000.tar", data)
    config = json.loads((run_ / "config.json").read_text()) | {"data": str(data)}
    run_dir.write_json(run_ / "config.json", config)
    against = ("--data", data, "--against", "labels", "--out", tmp_path / "both")
    both = kdcache("train", "digits", "--cache", config["cache"], *against)
    fails(both, 2, "no labelled validation split to compare the arms on")
    assert not (tmp_path / "both").exists()
    outcome = kdcache("eval", run_, "--json")
    facts = facts_of(outcome)
    assert "has no validation split" in outcome.err
    assert (facts["data"], facts["top1"], facts["images"]) == ([], None, 0)
    assert facts["cache"]["views"] == 400
    lines = kdcache("eval", run_).out.splitlines()
    assert lines[0].split() == ["top-1", "agrees", "KL"]
    fails(kdcache("eval", run_, "--views", 0), 2, "has no validation split")


def test_a_stored_teacher_at_chance_level_is_refused_unless_forced(
    kdcache: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher of these tests is random."""
    monkeypatch.setattr(statistics, "_ENOUGH", 50)
    command = (
        "eval",
        finished,
        "--cache",
        json.loads((finished / "config.json").read_text())["cache"],
    )
    fails(kdcache(*command), 1, "no more than by chance (10.00 %)", "--force")
    assert kdcache(*command, "--force").code == 0


@pytest.mark.parametrize("raw", [False, True])
def test_a_beton_gives_the_crops_of_the_files(digits: Path, tmp_path: Path, raw: bool) -> None:
    files = open_images(str(digits), "train")
    writer.write(files, tmp_path / "x.beton", raw, 2, lambda _: None)
    frames = [crops.Frame(32, 0.9)]
    of_files, stored = (
        np.concatenate([pixels for _, [pixels] in crops.batches(images, frames)])
        for images in (files, open_images(str(tmp_path / "x.beton"), "train"))
    )
    assert np.array_equal(stored, of_files)
