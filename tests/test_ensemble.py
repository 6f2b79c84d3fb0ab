"""Several teachers as one: the mixture against dense arithmetic, aligned caches or a refusal."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Outcome
from timm.models import save_for_hf

from cache_tools import codec, compare, dense, ensemble, mixture, spec
from cache_tools.codec import Targets
from cache_tools.commits import Part
from cache_tools.errors import CacheMismatch
from cache_tools.importers import dense as importer
from cache_tools.members import check_aligned, open_members
from cache_tools.mixture import Mixture
from cache_tools.shards import Images
from cache_tools.spec import TargetSpec
from cache_tools.store import Store
from cache_tools.teacher_spec import MemberSpec
from pipeline import recipe as recipes
from pipeline.run import run
from train.replay import Replay
from train.schedule import Schedule

Command = Callable[..., Outcome]
B, C = 300, 50
WEIGHTS = (0.7, 0.3)
SMALL = ["num_views=4", "views.mixup=0.5"]


def logits(seed: int, classes: int = C, flat_from: int | None = None) -> np.ndarray:
    """Opinions of a teacher; classes behind the best `flat_from` all alike."""
    values = np.random.default_rng(seed).standard_normal((B, classes)) * 2.5
    if flat_from is not None:
        order = np.argsort(-values, axis=1)
        np.put_along_axis(values, order[:, flat_from:], -6.0, axis=1)
    return values.astype("f4")


def exact(values: np.ndarray, targets: TargetSpec, label_BP: np.ndarray | None = None) -> Targets:
    """What is kept of logits, unrounded."""
    kept = dense.sparsify(values, targets, label_BP)
    order = np.argsort(np.where(kept.index_BK < 0, C + 1, kept.index_BK), axis=1)
    index, p = (np.take_along_axis(x, order, 1) for x in (kept.index_BK, kept.probability_BK))
    single = (x.astype("f4") for x in (p, kept.tail_BT, kept.true_BP, kept.square_BQ))
    return Targets(np.maximum(index, 0).astype("i4"), *single)


def mixed(*values: np.ndarray, weights: tuple[float, ...] = WEIGHTS, **kept: object) -> Targets:
    targets = TargetSpec(**kept)  # type: ignore[arg-type]
    mix = Mixture(weights, [targets] * len(values), values[0].shape[1])
    return mix([exact(v, targets) for v in values])


def mean(*distributions: np.ndarray, weights: tuple[float, ...] = WEIGHTS) -> np.ndarray:
    return sum(w * p for w, p in zip(weights, distributions, strict=True))  # type: ignore[return-value]


def tempered(q: np.ndarray, temperature: float) -> np.ndarray:
    powers = q ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0])
def test_of_all_classes_the_mixture_is_that_of_the_dense(temperature: float) -> None:
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=C, k_min=C, temperatures=(1.0, 4.0, 2.0))
    found = mixed(a, b, k_max=C, k_min=C, temperatures=(1.0, 4.0, 2.0))
    truth = tempered(mean(dense.softmax(a), dense.softmax(b)), temperature)
    assert np.abs(dense.restore(found, kept, C, temperature) - truth).max() < 1e-6


@pytest.mark.parametrize("flat_from", [None, 4])
def test_of_kept_classes_it_is_the_mean_of_what_each_restores(flat_from: int | None) -> None:
    """Also where one keeps a class and the other does not: that one's flat share enters."""
    a, b = logits(1, flat_from=flat_from), logits(2, flat_from=flat_from)
    kept = TargetSpec(k_max=4, tau=0.0)
    found = mixed(a, b, k_max=4, tau=0.0)
    truth = mean(*(dense.restore(exact(v, kept), kept, C) for v in (a, b)))
    assert np.abs(dense.restore(found, kept, C) - truth).max() < 1e-7
    assert np.allclose(found.probability_BK.sum(1) + found.tail_BT[:, 0], 1, atol=1e-6)
    assert (np.diff(np.where(found.probability_BK > 0, found.index_BK, C + 1), axis=1) >= 0).all()
    if flat_from is not None:  # then nothing is lost of the teachers either
        teachers = mean(dense.softmax(a), dense.softmax(b))
        assert np.abs(dense.restore(found, kept, C) - teachers).max() < 1e-6
        for t in (2.0, 5.0):  # declared or not: a flat tail stays flat
            q = dense.restore(found, kept, C, t)
            assert np.abs(q - tempered(teachers, t)).max() < 1e-5


def test_the_error_of_a_sparse_mixture_is_bounded_by_the_tails() -> None:
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=10, tau=0.001)
    found = dense.restore(mixed(a, b, k_max=10, tau=0.001), kept, C)
    truth = mean(dense.softmax(a), dense.softmax(b))
    tails = mean(*(exact(v, kept).tail_BT[:, :1] for v in (a, b)))[:, 0]
    distance = np.abs(found - truth).sum(axis=1)
    assert (distance <= 2 * tails + 1e-6).all()
    assert 0 < distance.mean() < 0.2


@pytest.mark.parametrize(("shared", "share"), [(0.0, 0.7), (0.7, 0.2)])
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_masses_at_a_temperature_are_better_than_flat(
    temperature: float, shared: float, share: float
) -> None:
    """Teachers that have nothing in common, and some that agree as real ones do."""
    both = [shared**0.5 * logits(9, 1000) + (1 - shared) ** 0.5 * logits(i, 1000) for i in (1, 2)]
    a, b = (v.astype("f4") for v in both)
    found = mixed(a, b, k_max=20, tau=0.0, temperatures=(1.0, temperature))
    q = tempered(mean(dense.softmax(a), dense.softmax(b)), temperature)
    used, others = found.probability_BK > 0, 1000 - (found.probability_BK > 0).sum(1)
    truth = 1 - np.where(used, q[np.arange(B)[:, None], found.index_BK], 0).sum(1)
    flat = others * (found.tail_BT[:, 0] / others) ** (1 / temperature)
    powers = np.where(used, found.probability_BK.astype("f8"), 0) ** (1 / temperature)
    errors = [
        np.abs(m - truth).mean() for m in (found.tail_BT[:, 1], flat / (flat + powers.sum(1)))
    ]
    assert 0 < errors[0] < share * errors[1]
    assert errors[0] < 0.05


def test_one_teacher_or_twice_the_same_is_that_teacher() -> None:
    a, kept = logits(1, 1000), {"k_max": 20, "tau": 0.0, "temperatures": (1.0, 2.0, 4.0)}
    alone = exact(a, TargetSpec(**kept))  # type: ignore[arg-type]
    for same in (mixed(a, weights=(1.0,), **kept), mixed(a, a, **kept)):
        assert np.allclose(same.tail_BT, alone.tail_BT, rtol=1e-5)
        assert np.allclose(same.probability_BK[:, :20], alone.probability_BK, rtol=1e-5)
        assert not same.probability_BK[:, 20:].any()


def test_without_tails_each_member_is_renormalised() -> None:
    kept = TargetSpec(k_max=4, tau=0.0)
    said = [exact(logits(seed), kept) for seed in (1, 2)]
    found = Mixture(WEIGHTS, [kept, kept], C, "zero")(said)
    p = [np.zeros((B, C)) for _ in said]
    for full, one in zip(p, said, strict=True):
        share = one.probability_BK / one.probability_BK.sum(1, keepdims=True)
        np.put_along_axis(full, one.index_BK.astype(int), share, axis=1)
    assert not found.tail_BT.any()
    assert np.abs(dense.restore(found, kept, C) - mean(*p)).max() < 1e-6


def test_the_order_of_members_does_not_matter() -> None:
    ab = mixed(logits(1), logits(2), k_max=10, tau=0.001)
    ba = mixed(logits(2), logits(1), weights=WEIGHTS[::-1], k_max=10, tau=0.001)
    assert (ab.index_BK == ba.index_BK).all()
    assert np.allclose(ab.probability_BK, ba.probability_BK, rtol=1e-6)
    assert np.allclose(ab.tail_BT, ba.tail_BT, rtol=1e-6)


def test_members_may_keep_differently() -> None:
    """Another K, other temperatures, another threshold; what both declare is declared."""
    specs = [TargetSpec(k_max=C, k_min=C), TargetSpec(k_max=3, tau=0.01, temperatures=(1.0, 4.0))]
    said = [exact(logits(i), s) for i, s in enumerate(specs)]
    mix = Mixture(WEIGHTS, specs, C)
    truth = mean(*(dense.restore(t, s, C) for t, s in zip(said, specs, strict=True)))
    assert mix.temperatures == (1.0,)
    assert np.abs(dense.restore(mix(said), specs[0], C) - truth).max() < 1e-6
    specs[0] = replace(specs[0], temperatures=(1.0, 4.0, 2.0))
    assert Mixture(WEIGHTS, specs, C).temperatures == (1.0, 4.0)


def test_a_stored_true_class_is_exact_and_its_tail_the_rest() -> None:
    """Both labels of a mixed view, also when they are one class or there is none."""
    a, b = logits(1), logits(2)
    kept = TargetSpec(k_max=3, tau=0.0, true_class=True)
    labels = np.random.default_rng(0).integers(0, C, (B, 2))
    labels[:20, 1], labels[20:30] = labels[:20, 0], -1
    found = Mixture(WEIGHTS, [kept, kept], C)([exact(v, kept, labels) for v in (a, b)], labels)
    restored = dense.restore(found, kept, C)
    truth = mean(dense.softmax(a), dense.softmax(b))
    known = labels >= 0
    at = np.arange(B)[:, None]
    assert np.abs(restored - truth)[at, labels][known].max() < 1e-6
    assert np.allclose(restored.sum(1), 1, atol=1e-6)
    sparse = mixture.sparsify(found, replace(kept, k_max=2), labels)
    dropped = ~(sparse.index_BK[:, None, :] == labels[:, :, None]).any(2) & known
    assert dropped.sum() > B
    assert np.abs(sparse.true_BP - truth[at, labels])[dropped].max() < 1e-6
    assert not sparse.true_BP[~dropped].any()


def test_what_is_dropped_again_goes_to_the_tail() -> None:
    found = mixed(logits(1), logits(2), k_max=20, tau=0.0, temperatures=(1.0, 2.0))
    full = TargetSpec(k_max=40, temperatures=(1.0, 2.0))
    spec_ = TargetSpec(k_max=5, tau=0.02, k_min=2)
    sparse = mixture.sparsify(found, spec_)
    for t, temperature in enumerate((1.0, 2.0)):
        q = dense.restore(found, full, C, temperature)
        used = sparse.index_BK >= 0
        kept = np.where(used, q[np.arange(B)[:, None], np.maximum(sparse.index_BK, 0)], 0).sum(1)
        assert np.allclose(kept + sparse.tail_BT[:, t], 1, atol=1e-6)
    counts = (sparse.index_BK >= 0).sum(1)
    assert counts.min() >= 2
    assert counts.max() == 5
    stored = codec.encode(sparse, spec_, C)
    assert codec.check(stored, spec_, C) is None


def test_the_identity_of_an_ensemble_is_pinned() -> None:
    """Written once, read for ever; and caches of one teacher keep the fingerprints they had."""
    one = Store.open(Path(__file__).parent / "fixtures/cache-v1.0").spec
    assert "members" not in one.mapping["teacher"]
    who = [MemberSpec(n, "resnet18", f"sha256:{n}", f"sha256:c{n}", 0.5) for n in ("1", "2")]
    both = replace(one, teacher=replace(one.teacher, members=tuple(who)))
    assert spec.from_mapping(both.mapping, "here") == both
    assert both.fingerprint[:23] == "sha256:6d917568819b7cb5"
    with pytest.raises(ValueError, match="add up to 1"):
        replace(one.teacher, members=(who[0], replace(who[1], weight=0.6)))


# --- caches


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "other"
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", num_classes=10)
    with torch.no_grad():
        model.get_classifier().weight.mul_(8.0)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory, digits: Path, other_teacher: Path) -> Path:
    """The views of `made`, by another teacher that keeps less."""
    out = tmp_path_factory.mktemp("cache") / "sibling.zarr"
    small = [*SMALL, "targets.k_max=6", "targets.k_min=2", "targets.tau=0.01"]
    run(recipes.load("digits", small), str(digits), str(other_teacher), out, "cpu")
    return out


def another(out: Path, data: Path, teacher: Path, *changes: str, name: str = "digits") -> Path:
    run(recipes.load(name, [*SMALL, *changes]), str(data), str(teacher), out, "cpu")
    return out


def test_the_ensemble_of_two_caches_is_a_cache(
    made: Path, sibling: Path, digits: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "e.zarr"
    done = kdcache("ensemble", made, sibling, "--weights", "7,3", "--out", out, "--json")
    assert done.code == 0, done.err
    members = json.loads(done.out)["teacher"]["members"]
    shares = {m["cache"]: m["weight"] for m in members}
    stores = [Store.open(p) for p in (made, sibling)]
    assert shares == dict(zip((s.spec.fingerprint for s in stores), WEIGHTS, strict=True))
    assert "0.7 of" in kdcache("info", out).out
    verdict = json.loads(kdcache("verify", out, "--data", digits, "--json").out)
    assert (verdict["verdict"], verdict["parts"], verdict["images"]) == ("ok", 4, 100)
    sides = [compare.OfCache(Store.open(p)) for p in (made, sibling, out)]
    for view in (0, 3):
        p, q, e = (side.distributions(view, np.arange(100), 1.0) for side in sides)
        assert np.abs(e - mean(p, q)).max() < 0.02  # a code's step at most
        assert np.abs(e - mean(p, q)).mean() < 0.002
    for path in (made, sibling):
        facts = json.loads(kdcache("diff", out, path, "--json").out)
        assert facts["compared"] == 400
        assert 0 < facts["kl_t1_mean"] < 1
    asked = kdcache("verify", out, "--data", digits, "--recompute", "1")
    assert asked.code == 2
    assert "is an ensemble" in asked.err
    again = tmp_path / "again.zarr"
    kdcache("ensemble", sibling, made, "--weights", "0.3,0.7", "--out", again)
    assert Store.open(again).content_id() == Store.open(out).content_id()


def test_an_ensemble_that_was_killed_goes_on(made: Path, sibling: Path, tmp_path: Path) -> None:
    out, members = tmp_path / "e.zarr", open_members([made, sibling], blocks=True)
    store = ensemble.run(members, out)
    whole = store.content_id()
    (out / Part(2, 0).record).unlink()
    chunk = out / "targets/code/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert ensemble.run(members, out).content_id() == whole


def test_what_is_kept_of_an_ensemble_can_be_chosen(
    made: Path, sibling: Path, tmp_path: Path, kdcache: Command
) -> None:
    arguments = ("ensemble", made, sibling, "--out")
    done = kdcache(*arguments, tmp_path / "k", "--keep", "tau=0.05,max=3", "--json")
    assert 1 <= json.loads(done.out)["kept_classes_mean"] <= 3
    assert kdcache("verify", tmp_path / "k").code == 0
    other = kdcache(*arguments, tmp_path / "k", "--weights", "1,2", "--keep", "tau=0.05,max=3")
    assert other.code == 2
    assert "is another cache: teacher." in other.err
    refused = kdcache("ensemble", sibling, made, "--out", tmp_path / "l", "--keep", "t2=3")
    assert "Leave t2= out" in refused.err


def test_more_than_the_members_know_cannot_be_kept(tmp_path: Path, kdcache: Command) -> None:
    for seed in (1, 2):
        np.save(tmp_path / f"{seed}.npy", logits(seed))
        keep = importer.keep("tau=0.05,max=9,min=2")
        importer.run(tmp_path / f"{seed}.npy", tmp_path / f"{seed}.zarr", keep, f"t{seed}")
    arguments = ("ensemble", tmp_path / "1.zarr", tmp_path / "2.zarr", "--out", tmp_path / "e")
    refused = kdcache(*arguments, "--keep", "k=5")
    assert refused.code == 2
    assert "the members know 2" in refused.err
    assert "is your word" in refused.err
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
    command: str, change: str, words: str, made: Path, digits: Path, other_teacher: Path,
    tmp_path: Path, kdcache: Command,
) -> None:  # fmt: skip
    path = another(tmp_path / "o.zarr", digits, other_teacher, change)
    refused(kdcache, command, made, path, tmp_path, words)


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
    command: str, made: Path, digits: Path, teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=12)
    save_for_hf(model, str(tmp_path / "t"), safe_serialization=True)
    wide = another(tmp_path / "w.zarr", digits, tmp_path / "t", "dataset.labels=ignore")
    narrow = another(tmp_path / "n.zarr", digits, teacher, "dataset.labels=ignore")
    refused(kdcache, command, narrow, wide, tmp_path, "teacher.num_classes: 10 against 12")
    data = digits / "digits-validation-0000.tar"
    other = another(tmp_path / "d.zarr", data, tmp_path / "t", "dataset.labels=ignore")
    refused(kdcache, command, made, other, tmp_path, "they are of 100 and 500 samples, and 'digit_")


@pytest.mark.parametrize("command", ["ensemble", "train"])
def test_a_missing_part_and_the_same_cache_twice_are_refused(
    command: str, made: Path, sibling: Path, cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    refused(kdcache, command, made, cache, tmp_path, "are the same cache", 2)
    holed = shutil.copytree(sibling, tmp_path / "holed.zarr")
    (holed / Part(3, 0).record).unlink()
    shutil.copy(f"{sibling}.source", tmp_path / "holed.zarr.source")
    caches = (
        (made, holed) if command == "ensemble" else ("digits", "--cache", made, "--cache", holed)
    )
    outcome = kdcache(command, *caches, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "CacheIncomplete: view 3, block 0 of" in outcome.err
    assert "holed.zarr" in outcome.err


def test_teachers_may_see_the_views_at_their_own_size(
    made: Path, digits: Path, other_teacher: Path, tmp_path: Path, kdcache: Command
) -> None:
    large = another(tmp_path / "l.zarr", digits, other_teacher, "views.teacher_size=64")
    assert kdcache("ensemble", made, large, "--out", tmp_path / "e").code == 0
    assert Store.open(tmp_path / "e").spec.views == Store.open(made).spec.views
    assert kdcache("verify", tmp_path / "e", "--data", digits).code == 0


def test_members_of_other_pixels_are_refused(
    made: Path, sibling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other versions of a library would make them: the specs agree, the pixels do not."""
    members, real = open_members([made, sibling], blocks=True), Store.read

    def read(self: Store, part: Part) -> tuple[codec.Stored, np.ndarray]:
        stored, probes = real(self, part)
        return stored, probes ^ np.uint64(self.name == str(sibling))

    monkeypatch.setattr(Store, "read", read)
    with pytest.raises(CacheMismatch, match=r"view 0, block 0 of .* other pixels.*simplejpeg"):
        ensemble.run(members, tmp_path / "e")


def test_an_image_that_was_changed_is_named(made: Path, sibling: Path) -> None:
    a, b = Store.open(made), Store.open(sibling)
    digests = b.table.digest_N.copy()
    digests[7] ^= np.uint64(1)
    b.__dict__["table"] = replace(b.table, digest_N=digests)
    b.spec = replace(b.spec, dataset=replace(b.spec.dataset, table_sha256=b.table.sha256))
    with pytest.raises(CacheMismatch, match=f"digest of 1 of 100 images.*{a.table.keys[7]}"):
        check_aligned(a, b)


def test_weights_that_cannot_be(
    made: Path, sibling: Path, tmp_path: Path, kdcache: Command
) -> None:
    arguments = ("ensemble", made, sibling, "--out", tmp_path / "e", "--weights")
    for text, words in {
        "1": "2 caches and 1 weights",
        "1,0": "weights are positive",
        "1,nan": "weights are positive",
        "1,x": "are not numbers such as 0.7,0.3",
    }.items():
        outcome = kdcache(*arguments, text)
        assert outcome.code == 2
        assert words in outcome.err
    alone = kdcache("ensemble", made, "--out", tmp_path / "e")
    assert "two members or more" in alone.err


# --- training


FAST = ["epochs=1", "batch_size=50", "views_per_epoch=1"]  # two steps


def test_two_steps_from_two_caches(
    made: Path, sibling: Path, tmp_path: Path, kdcache: Command
) -> None:
    both = ("--cache", made, "--cache", sibling)
    arguments = ("train", "digits", *both, "--out", tmp_path / "run", *FAST)
    done = kdcache(*arguments, "--weight", "0.7", "--weight", "0.3")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/config.json").read_text())
    fingerprints = [Store.open(p).spec.fingerprint for p in (made, sibling)]
    assert config["weights"] == dict(zip(fingerprints, WEIGHTS, strict=True))
    assert "is finished" in kdcache(*arguments, "--weight", "70", "--weight", "30").err
    other = kdcache(*arguments, "--weight", "0.5", "--weight", "0.5")
    assert other.code == 2
    assert f"weights.{min(fingerprints)}: " in other.err
    assert "another run" in other.err
    single = kdcache("train", "digits", *both[:2], "--out", tmp_path / "run", *FAST)
    assert single.code == 2
    measured = kdcache("eval", tmp_path / "run", "--json")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert json.loads(measured.out)["top1"] == result["top1"]
    swapped = ("--cache", sibling, "--cache", made, "--weight", "0.3", "--weight", "0.7")
    kdcache("train", "digits", *swapped, "--out", tmp_path / "swapped", *FAST)
    assert result["loss"] == json.loads((tmp_path / "swapped/result.json").read_text())["loss"]
    online = kdcache("train", "digits", *both, "--out", tmp_path / "o", *FAST, "mode=online")
    assert "mode=online runs the teacher of one cache" in online.err


@pytest.mark.parametrize("views_per_epoch", [1, 2])
def test_batches_hold_the_mean_of_what_each_cache_says(
    views_per_epoch: int, made: Path, sibling: Path, images: Images
) -> None:
    members = open_members([made, sibling], WEIGHTS)
    schedule = Schedule(members.first, views_per_epoch, 40, seed=5)
    epochs = [Replay(store, images, schedule, 1).epoch(1) for store in members.stores]
    epochs.append(Replay(members.first, images, schedule, 1, members=members).epoch(1))
    for a, b, both in zip(*epochs, strict=True):
        p = [
            dense.restore(batch.targets, store.spec.targets, 10)
            for batch, store in zip((a, b), members.stores, strict=True)
        ]
        q = dense.restore(both.targets, members.first.spec.targets, 10)
        assert np.abs(q - mean(*p, weights=members.weights)).max() < 1e-6
        assert (a.pixels == both.pixels).all()
        assert (a.label_B == both.label_B).all()


@pytest.mark.parametrize("loss", ["kd", "bkd", "dkd", "dist"])
def test_every_loss_takes_two_caches_or_their_ensemble(
    loss: str, made: Path, sibling: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Near each other: a code's rounding and what a step of training makes of it."""
    keep = "tau=0.0,max=10,min=6,levels=254"
    assert kdcache("ensemble", made, sibling, "--out", tmp_path / "e", "--keep", keep).code == 0
    found = []
    for name, caches in {"two": (made, sibling), "one": (tmp_path / "e",)}.items():
        named = [word for path in caches for word in ("--cache", path)]
        arguments = ("--out", tmp_path / name, *FAST, f"loss={loss}", "temperature=1.0")
        outcome = kdcache("train", "digits", *named, *arguments)
        assert outcome.code == 0, outcome.err
        found.append(json.loads((tmp_path / name / "result.json").read_text())["loss"])
        said = "takes the tail of a mixture as flat" in outcome.err
        assert said == (loss == "dist" and name == "two")
    assert found[0] == pytest.approx(found[1], rel=0.03)


@pytest.mark.parametrize("tail", ["bucket", "zero"])
def test_other_tails_train_too(
    tail: str, made: Path, sibling: Path, tmp_path: Path, kdcache: Command
) -> None:
    both = ("--cache", made, "--cache", sibling)
    done = kdcache("train", "digits", *both, "--out", tmp_path / "r", *FAST, f"tail={tail}")
    assert done.code == 0, done.err
