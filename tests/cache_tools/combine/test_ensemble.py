"""`kdcache ensemble`: aligned caches as one, or a refusal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from cache_tools.combine import diff, ensemble
from cache_tools.errors import CacheMismatch
from cache_tools.importers import dense as importer
from cache_tools.spec import cache as spec
from cache_tools.spec.teacher import MemberSpec
from cache_tools.store.aligned import check_aligned, open_ensemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.targets.keep import of_all_classes
from pipeline import recipe as recipes
from pipeline.run import run
from tests.helpers.mixtures import WEIGHTS, B, logits, mean
from tests.helpers.outcome import Outcome
from tests.helpers.paths import FIXTURES

Command = Callable[..., Outcome]
SMALL = ["num_views=4", "views.mixup=0.5"]


def test_the_identity_of_an_ensemble_is_pinned() -> None:
    """Written once, read for ever; and caches of one teacher keep the fingerprints they had."""
    one = Cache.open(FIXTURES / "cache-v1.0").spec
    assert "members" not in one.mapping["teacher"]
    who = [MemberSpec(n, "resnet18", f"sha256:{n}", f"sha256:c{n}", 0.5) for n in ("1", "2")]
    both = replace(one, teacher=replace(one.teacher, members=tuple(who)))
    assert spec.from_mapping(both.mapping, "here") == both
    assert both.fingerprint[:23] == "sha256:6d917568819b7cb5"
    with pytest.raises(ValueError, match="add up to 1"):
        replace(one.teacher, members=(who[0], replace(who[1], weight=0.6)))


# --- caches


def another(out: Path, data: Path, teacher: Path, *changes: str, name: str = "digits") -> Path:
    run(recipes.load(name, [*SMALL, *changes]), str(data), str(teacher), out, "cpu")
    return out


def test_the_ensemble_of_two_caches_is_a_cache(
    digits_cache: Path, sibling_cache: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "e.zarr"
    done = kdcache(
        "ensemble", digits_cache, sibling_cache, "--weights", "7,3", "--out", out, "--json"
    )
    assert done.code == 0, done.err
    members = json.loads(done.out)["teacher"]["members"]
    shares = {m["cache"]: m["weight"] for m in members}
    stores = [Cache.open(p) for p in (digits_cache, sibling_cache)]
    assert shares == dict(zip((s.spec.fingerprint for s in stores), WEIGHTS, strict=True))
    assert "0.7 of" in kdcache("info", out).out
    verdict = json.loads(kdcache("verify", out, "--data", digits, "--json").out)
    assert (verdict["verdict"], verdict["parts"], verdict["images"]) == ("ok", 4, 100)
    sides = [diff.OfCache(Cache.open(p)) for p in (digits_cache, sibling_cache, out)]
    for view in (0, 3):
        p, q, e = (side.distributions(view, np.arange(100), 1.0) for side in sides)
        assert np.abs(e - mean(p, q)).max() < 0.02  # a code's step at most
        assert np.abs(e - mean(p, q)).mean() < 0.002
    for path in (digits_cache, sibling_cache):
        facts = json.loads(kdcache("diff", out, path, "--json").out)
        assert facts["compared"] == 400
        assert 0 < facts["kl_t1_mean"] < 1
    asked = kdcache("verify", out, "--data", digits, "--recompute", "1")
    assert asked.code == 2
    assert "is an ensemble" in asked.err
    again = tmp_path / "again.zarr"
    kdcache("ensemble", sibling_cache, digits_cache, "--weights", "0.3,0.7", "--out", again)
    assert Cache.open(again).content_id() == Cache.open(out).content_id()


def test_an_ensemble_that_was_killed_goes_on(
    digits_cache: Path, sibling_cache: Path, tmp_path: Path
) -> None:
    out, members = tmp_path / "e.zarr", open_ensemble([digits_cache, sibling_cache], blocks=True)
    store = ensemble.run(members, out)
    whole = store.content_id()
    (out / Part(2, 0).record).unlink()
    chunk = out / "targets/code/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert ensemble.run(members, out).content_id() == whole


def test_what_is_kept_of_an_ensemble_can_be_chosen(
    digits_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    arguments = ("ensemble", digits_cache, sibling_cache, "--out")
    done = kdcache(*arguments, tmp_path / "k", "--keep", "tau=0.05,max=3", "--json")
    assert 1 <= json.loads(done.out)["kept_classes_mean"] <= 3
    assert kdcache("verify", tmp_path / "k").code == 0
    other = kdcache(*arguments, tmp_path / "k", "--weights", "1,2", "--keep", "tau=0.05,max=3")
    assert other.code == 2
    assert "is another cache: teacher." in other.err
    refused = kdcache(
        "ensemble", sibling_cache, digits_cache, "--out", tmp_path / "l", "--keep", "t2=3"
    )
    assert "'temperature' is no name of it" in refused.err


def test_more_classes_than_the_members_keep_are_refused(tmp_path: Path, kdcache: Command) -> None:
    for seed in (1, 2):
        np.save(tmp_path / f"{seed}.npy", logits(seed))
        keep = of_all_classes("tau=0.05,max=9,min=2")
        importer.run(tmp_path / f"{seed}.npy", tmp_path / f"{seed}.zarr", keep, f"t{seed}")
    arguments = ("ensemble", tmp_path / "1.zarr", tmp_path / "2.zarr", "--out", tmp_path / "e")
    refused = kdcache(*arguments, "--keep", "tau=0,k_max=5,k_min=5")
    assert refused.code == 2
    assert "the members have 2" in refused.err
    assert "it cannot be checked" in refused.err
    for zero in ("k=0", "k_max=0", "k_min=0", "levels=0"):
        assert kdcache(*arguments, "--keep", zero).code == 2
        assert not (tmp_path / "e").exists()
    assert kdcache(*arguments).code == 0
    facts = json.loads(kdcache("diff", tmp_path / "1.npy", tmp_path / "e", "--json").out)
    assert facts["compared"] == B


@pytest.mark.parametrize("command", ["ensemble", "train"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("views.seed=7", "views.seed: "),
        ("views.scale=[0.5, 1.0]", "views.scale: "),
        ("dataset.labels=ignore", "the label of 100 of 100 images differs"),
    ],
)
def test_other_views_are_refused(
    command: str, change: str, words: str, digits_cache: Path, digits: Path, other_teacher: Path,
    tmp_path: Path, kdcache: Command,
) -> None:  # fmt: skip
    path = another(tmp_path / "o.zarr", digits, other_teacher, change)
    refused(kdcache, command, digits_cache, path, tmp_path, words)


def refused(
    kdcache: Command, command: str, a: Path, b: Path, tmp_path: Path, words: str, code: int = 1
) -> None:
    caches = (a, b) if command == "ensemble" else ("digits", "--cache", a, "--cache", b)
    outcome = kdcache(command, *caches, "--out", tmp_path / "out")
    assert outcome.code == code
    assert outcome.out == ""
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["ensemble", "train"])
def test_other_data_and_other_classes_are_refused(
    command: str, digits_cache: Path, digits: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=12)
    save_for_hf(model, str(tmp_path / "t"), safe_serialization=True)
    wide = another(tmp_path / "w.zarr", digits, tmp_path / "t", "dataset.labels=ignore")
    narrow = another(tmp_path / "n.zarr", digits, teacher, "dataset.labels=ignore")
    refused(kdcache, command, narrow, wide, tmp_path, "teacher.num_classes: 10 against 12")
    data = digits / "digits-validation-0000.tar"
    other = another(tmp_path / "d.zarr", data, tmp_path / "t", "dataset.labels=ignore")
    refused(
        kdcache,
        command,
        digits_cache,
        other,
        tmp_path,
        "they are of 100 and 500 samples, and 'digit_",
    )


@pytest.mark.parametrize("command", ["ensemble", "train"])
def test_a_missing_part_and_the_same_cache_twice_are_refused(
    command: str,
    digits_cache: Path,
    sibling_cache: Path,
    mutable_cache: Path,
    tmp_path: Path,
    kdcache: Command,
) -> None:
    refused(kdcache, command, digits_cache, mutable_cache, tmp_path, "are the same cache", 2)
    holed = shutil.copytree(sibling_cache, tmp_path / "holed.zarr")
    (holed / Part(3, 0).record).unlink()
    shutil.copy(f"{sibling_cache}.source", tmp_path / "holed.zarr.source")
    caches = (
        (digits_cache, holed)
        if command == "ensemble"
        else ("digits", "--cache", digits_cache, "--cache", holed)
    )
    outcome = kdcache(command, *caches, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "CacheIncomplete: view 3, block 0 of" in outcome.err
    assert "holed.zarr" in outcome.err


def test_teachers_may_see_the_views_at_their_own_size(
    digits_cache: Path, digits: Path, other_teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    large = another(tmp_path / "l.zarr", digits, other_teacher, "views.teacher_size=64")
    assert kdcache("ensemble", digits_cache, large, "--out", tmp_path / "e").code == 0
    assert Cache.open(tmp_path / "e").spec.views == Cache.open(digits_cache).spec.views
    assert kdcache("verify", tmp_path / "e", "--data", digits).code == 0


def test_members_of_other_pixels_are_refused(
    digits_cache: Path, sibling_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other versions of a library would make them: the specs agree, the pixels do not."""
    members, real = open_ensemble([digits_cache, sibling_cache], blocks=True), Cache.read

    def read(self: Cache, part: Part) -> tuple[codec.EncodedTargets, np.ndarray]:
        stored, probes = real(self, part)
        return stored, probes ^ np.uint64(self.name == str(sibling_cache))

    monkeypatch.setattr(Cache, "read", read)
    with pytest.raises(CacheMismatch, match=r"view 0, block 0 of .* other pixels.*simplejpeg"):
        ensemble.run(members, tmp_path / "e")


def test_an_image_that_was_changed_is_named(digits_cache: Path, sibling_cache: Path) -> None:
    a, b = Cache.open(digits_cache), Cache.open(sibling_cache)
    digests = b.table.digest_N.copy()
    digests[7] ^= np.uint64(1)
    b.__dict__["table"] = replace(b.table, digest_N=digests)
    b.spec = replace(b.spec, dataset=replace(b.spec.dataset, table_sha256=b.table.sha256))
    with pytest.raises(CacheMismatch, match=f"digest of 1 of 100 images.*{a.table.keys[7]}"):
        check_aligned(a, b)


def test_weights_that_cannot_be(
    digits_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    arguments = ("ensemble", digits_cache, sibling_cache, "--out", tmp_path / "e", "--weights")
    for text, words in {
        "1": "2 caches and 1 weights",
        "1,0": "weights are positive",
        "1,nan": "weights are positive",
        "1,x": "are not numbers such as 0.7,0.3",
    }.items():
        outcome = kdcache(*arguments, text)
        assert outcome.code == 2
        assert words in outcome.err
    alone = kdcache("ensemble", digits_cache, "--out", tmp_path / "e")
    assert "two members or more" in alone.err


# --- training
