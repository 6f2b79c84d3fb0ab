import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheMismatch, CacheNotFound, DataError, TeacherError, UsageError
from cache_tools.spec.targets import TargetSpec
from cache_tools.store import presence
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import statistics
from cache_tools.verify import verify
from pipeline import recipe as recipes
from pipeline.run import PartSelection, run
from pipeline.teacher import teacher as teachers
from pipeline.teacher.forward import Forward
from pipeline.worker.groups import DecodeGroup
from pipeline.worker.meter import TIMINGS
from pipeline.worker.stage1 import Stage1

SMALL = ["num_views=4", "views.mixup=0.5"]


def files(cache: Path) -> dict[str, object]:
    """Every file's bytes; of commit records what does not depend on the clock."""
    found = {str(p.relative_to(cache)): p for p in cache.rglob("*") if p.is_file()}
    return {
        n: timeless(p) if n.startswith("commits/v") else p.read_bytes() for n, p in found.items()
    }


def timeless(record: Path) -> dict[str, object]:
    said = json.loads(record.read_bytes())
    del said["sha256"]
    for name in TIMINGS:
        del said["statistics"][name]
    return said


def again(digits: Path, teacher: Path, out: Path, *overrides: str, **options: object) -> Cache:
    loaded = recipes.load("digits", [*SMALL, *overrides])
    return run(loaded, str(digits), str(teacher), out, "cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_fails_on_its_data_leaves_nothing(
    teacher: Path, tmp_path: Path, is_there: bool
) -> None:
    if is_there:
        (tmp_path / "photos/a").mkdir(parents=True)
        (tmp_path / "photos/a/1.jpg").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((DataError, UsageError)):
        again(tmp_path / "photos", teacher, tmp_path / "new/folder/c.zarr", "dataset.labels=ignore")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_teacher_at_chance_level_is_refused_unless_forced(
    digits: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixup: float
) -> None:
    """The teacher of these tests is random."""
    monkeypatch.setattr(statistics, "_ENOUGH", 50)
    out, options = tmp_path / "c.zarr", [f"views.mixup={mixup}", "num_views=1"]
    with pytest.raises(DataError, match=rf"chance \({10 * (1 + (mixup > 0))}.00 %\). .*--force"):
        again(digits, teacher, out, *options)
    assert list(tmp_path.iterdir()) == []  # and another recipe may follow
    assert again(digits, teacher, out, *options, "views.degrees=3.0", force=True).num_views == 1


def test_a_rerun_mends_what_is_outside_the_parts(
    mutable_cache: Path, digits_cache: Path, digits: Path, teacher: Path
) -> None:
    times = {path: path.stat().st_mtime_ns for path in mutable_cache.rglob("*")}
    again(digits, teacher, mutable_cache)
    assert {path: path.stat().st_mtime_ns for path in mutable_cache.rglob("*")} == times
    of_array = "targets/code/zarr.json"
    for damaged in (["samples/label/c/0", of_array], ["zarr.json"], ["zarr.json", of_array]):
        for name in damaged:
            (mutable_cache / name).unlink()
        again(digits, teacher, mutable_cache)
        assert files(mutable_cache) == files(digits_cache)


@pytest.mark.parametrize("name", ["zarr.json", "samples/key/c/0", "commits/v0000/b0000.json"])
def test_a_rerun_replaces_links_and_empty_folders(
    digits: Path, teacher: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "c.zarr"
    again(digits, teacher, out, force=True)
    made = files(out)
    for link in ("", "nowhere", "/nowhere/at/all"):
        (out / name).unlink()
        (out / name).symlink_to(link) if link else (out / name).mkdir()
        if name == "zarr.json":
            with pytest.raises(CacheNotFound, match=rf"zarr.json is (no file|a link to {link})"):
                Cache.open(out)
        again(digits, teacher, out, force=True)
        assert files(out) == made


def test_the_same_command_makes_the_same_bytes(
    digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    again(digits, teacher, tmp_path / "b.zarr", "views_per_decode=1")
    assert files(tmp_path / "b.zarr") == files(digits_cache)


SLOWLY = [pytest.param(after, marks=pytest.mark.slow) for after in (0.0, 0.4)]


@pytest.mark.parametrize("after", [0.15, *SLOWLY])
def test_kill_dash_nine_costs_only_the_part_in_hand(
    digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path, after: float
) -> None:
    out = tmp_path / "c.zarr"
    kdcache = Path(sys.executable).parent / "kdcache"
    arguments = ["cache", "digits", "--data", digits, "--teacher", teacher, "--out", out, *SMALL]
    command = [str(a) for a in (kdcache, *arguments, "views_per_decode=1", "batch_size=5")]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        while not out.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    assert out.exists()
    store = Cache.open(out)
    left = [part for part in store.parts() if store.present(part)]
    assert all(store.check_part(part) is None for part in left)
    subprocess.run(command, check=True)
    undisturbed = again(digits, teacher, tmp_path / "d.zarr", "batch_size=5")
    assert verify.verify(Cache.open(out)).status == "ok"
    assert {k: v for k, v in files(out).items() if not k.endswith(".partial")} == files(
        undisturbed.path
    )


def test_only_what_is_missing_or_damaged_is_made_again(
    mutable_cache: Path,
    digits_cache: Path,
    digits: Path,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunk = mutable_cache / "targets/code/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    (mutable_cache / Part(3, 0).record).unlink()
    written = []
    write = Cache.write
    monkeypatch.setattr(Cache, "write", lambda s, p, *a: written.append(p) or write(s, p, *a))
    again(digits, teacher, mutable_cache)
    assert written == [Part(1, 0), Part(3, 0)]
    assert files(mutable_cache) == files(digits_cache)


def test_two_processes_that_make_the_same_parts_are_warned_of(
    mutable_cache: Path, digits: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Cache.open(mutable_cache)
    (mutable_cache / Part(3, 0).record).unlink()
    with presence.announced(store):
        again(digits, teacher, mutable_cache, selection=PartSelection(0, 2))
        assert "makes this cache as well" not in caplog.text
        again(digits, teacher, mutable_cache)
    assert f"process {os.getpid()} on " in caplog.text
    caplog.clear()
    again(digits, teacher, mutable_cache)
    assert "makes this cache as well" not in caplog.text


def test_shares_and_limits_add_up(
    digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    one = "views_per_decode=1"
    again(digits, teacher, out, one, selection=PartSelection(1, 3))
    store = again(digits, teacher, out, one, selection=PartSelection(limit=1))
    assert [p.view for p in store.parts() if store.present(p)] == [0, 1]
    again(digits, teacher, out, one, selection=PartSelection(0, 2))
    again(digits, teacher, out, one, selection=PartSelection(1, 2))
    assert files(out) == files(digits_cache)


def test_several_blocks_and_growth(digits: Path, teacher: Path, tmp_path: Path) -> None:
    """1,000 images as two windows' worth of blocks would be large: a block per 1,024 is one."""
    loaded = recipes.load("digits", ["num_views=1", "dataset.split=teacher", "block_size=1024"])
    store = run(loaded, str(digits), str(teacher), tmp_path / "g.zarr", "cpu", force=True)
    assert store.spec.num_blocks == 1
    grown = recipes.load("digits", ["num_views=2", "dataset.split=teacher", "block_size=1024"])
    before = files(store.path)
    store = run(grown, str(digits), str(teacher), tmp_path / "g.zarr", "cpu", force=True)
    after = files(store.path)
    assert store.num_views == 2
    assert all(after[k] == v for k, v in before.items() if "/c/" in k or "commits" in k)
    assert verify.verify(Cache.open(store.path)).status == "ok"


def test_a_cache_that_an_older_kdcache_began_keeps_its_renderer(
    digits_cache: Path, images: ImageDataset, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    """The pixels of its first views go on: all crops of these 32 pixels are enlarged."""
    new = Cache.open(digits_cache)
    first = replace(new.spec, renderer="kernels-1")
    Cache.create(tmp_path / "old.zarr", first, new.table, 1)
    old = again(digits, teacher, tmp_path / "old.zarr")
    assert (old.spec, old.spec.format_version, old.num_views) == (first, "1.0", 4)
    assert verify.verify(old, images).status == "ok"
    for part in old.parts():
        assert (old.read(part)[1] != new.read(part)[1]).any()


def test_another_recipe_or_teacher_is_refused_by_field(
    mutable_cache: Path, digits: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(CacheMismatch, match=r"views\.degrees: 23\.0 against 3\.0"):
        again(digits, teacher, mutable_cache, "views.degrees=3.0")
    other = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(other, str(tmp_path / "other"), safe_serialization=True)
    with pytest.raises(CacheMismatch, match=r"teacher\.weights_sha256: 'sha256:"):
        again(digits, tmp_path / "other", mutable_cache)


def test_labels_of_other_classes_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CacheMismatch, match=r"10 classes, the teacher predicts 1000.*labels=ignore"
    ):
        loaded = recipes.load("digits", SMALL)
        run(loaded, str(digits), "test_resnet", tmp_path / "x", "cpu", random_weights=True)
    assert not (tmp_path / "x").exists()


class Broken(Forward):
    """A teacher whose half precision overflows on the 38th sample."""

    seen = 0

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        index, p, tail, *others = super().__call__(pixels, partner, mix, label)
        if self.seen <= 37 < self.seen + len(pixels):
            tail = tail.clone()
            tail[37 - self.seen] = float("nan")
        self.seen += len(pixels)
        return index, p, tail, *others


def test_nan_is_never_stored(mutable_cache: Path, images: ImageDataset, teacher: Path) -> None:
    store = Cache.open(mutable_cache)
    loaded = teachers.load(str(teacher), 32, "fp32")
    forward = Broken(loaded, store.spec.targets, torch.device("cpu"))
    (mutable_cache / Part(0, 0).record).unlink()
    worker = Stage1(store, images, forward, 16, 2)
    (failed,) = worker.make([DecodeGroup(0, (0,))], lambda _: None)
    worker.close()
    assert failed.part == Part(0, 0)
    assert failed.kind == "NonFinite"
    assert store.table.keys[37] in failed.error
    assert not store.present(Part(0, 0))


def test_nan_logits_show_in_the_tail() -> None:
    from pipeline.teacher.sparsify import sparsify

    logits = torch.randn(4, 20)
    logits[1, 3], logits[2, 5] = float("nan"), float("inf")
    tail = sparsify(logits, TargetSpec(k_max=20, tau=0.0))[2]
    assert torch.isfinite(tail).all(1).tolist() == [True, False, False, True]


def test_teachers_that_cannot_be_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no network 'resnet_50'.*Did you mean"):
        teachers.load("resnet_50", 224, "fp32")
    with pytest.raises(UsageError, match=r"no file best\.pth"):
        teachers.load("best.pth", 224, "fp32")
    with pytest.raises(TeacherError, match=r"config\.json"):
        teachers.load(str(tmp_path), 224, "fp32")
    with pytest.raises(UsageError, match=r"160 px only.*views\.size=160"):
        teachers.load("test_vit", 224, "fp32", random_weights=True)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, pretrained: bool = False) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(
        TeacherError, match=r"resnet18\.a1_in1k cannot be downloaded.*--random-weights"
    ):
        teachers.load("resnet18.a1_in1k", 224, "fp32")


def test_the_weights_hash_covers_every_tensor(teacher: Path) -> None:
    loaded = teachers.load(str(teacher), 32, "fp32")
    before = teachers.weights_sha256(loaded.model)
    assert before == loaded.spec.weights_sha256
    next(reversed(loaded.model.state_dict().values())).add_(1e-3)
    assert teachers.weights_sha256(loaded.model) != before


def test_bf16_autocast_runs_on_the_cpu(teacher: Path) -> None:
    loaded = teachers.load(str(teacher), 32, "bf16")
    forward = Forward(loaded, TargetSpec(k_max=10, tau=0.0), torch.device("cpu"))
    exact = Forward(
        teachers.load(str(teacher), 32, "fp32"), TargetSpec(k_max=10, tau=0.0), torch.device("cpu")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    half, full = forward(pixels, None, None)[1], exact(pixels, None, None)[1]
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.1
    assert not torch.equal(half, full)
