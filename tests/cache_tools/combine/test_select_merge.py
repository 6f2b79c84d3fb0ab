"""Cutting and merging caches: what comes out is what one run would have written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_tools.combine import merge, select
from cache_tools.errors import CacheIncomplete, CacheMismatch, UsageError
from cache_tools.share import pull
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.aligned import check_aligned
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense
from cache_tools.verify import verify
from tests.helpers import lab
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
N = 100


def files(cache: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """Files of a cache by their paths."""
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob(pattern) if p.is_file()}


def targets(cache: Path) -> dict[str, bytes]:
    return files(cache, "targets/*/c/**/*")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 views of 100 samples in 4 blocks."""
    out = tmp_path_factory.mktemp("lab") / "whole.zarr"
    lab.build(out, lab.keys(N), range(5))
    return out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with mixing, in windows of 16 samples."""
    out = tmp_path_factory.mktemp("lab") / "mixed.zarr"
    lab.build(out, lab.keys(N), range(2), mixup=0.8)
    return out


def test_views_are_copied_with_their_records(whole: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "few.zarr"
    said = kdcache("select", whole, out, "--views", ":2", "--json")
    assert json.loads(said.out)["parts"] == {"there": 0, "made": 8}
    assert Cache.open(out).spec.fingerprint == Cache.open(whole).spec.fingerprint
    theirs = files(whole)
    changed = {name for name, data in files(out).items() if theirs[name] != data}
    assert all(name.endswith("zarr.json") for name in changed)
    assert verify.verify(Cache.open(out)).status == "ok"


def test_views_that_do_not_begin_at_0_leave_the_first_ones_missing(
    whole: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "late.zarr"
    assert kdcache("select", whole, out, "--views", "3:").code == 0
    assert kdcache("status", out).code == 1
    assert Cache.open(out).read(Part(4, 1))[0] is not None
    assert verify.verify(Cache.open(out)).status == "incomplete"
    rest = tmp_path / "rest.zarr"
    assert kdcache("select", whole, rest, "--views", "0:3").code == 0
    said = kdcache("merge", tmp_path / "again.zarr", out, rest)
    assert (said.code, "20 of 20 parts" in said.out) == (0, True)
    assert files(tmp_path / "again.zarr") == files(whole)


@pytest.mark.parametrize("wanted", ["0.3", "keys"])
def test_fewer_samples_are_the_cache_of_those_samples(
    wanted: str, whole: Path, tmp_path: Path, kdcache: Command
) -> None:
    known = lab.table(lab.keys(N)).keys
    names = list(known[:30] if wanted == "0.3" else known[3:90:4])
    (tmp_path / "keys").write_text("\n".join(reversed(names)) + "\n")
    out = tmp_path / "few.zarr"
    said = kdcache(
        "select", whole, out, "--samples", "0.3" if wanted == "0.3" else tmp_path / "keys"
    )
    assert said.code == 0, said.err
    made = lab.build(tmp_path / "made.zarr", names, range(5))
    assert Cache.open(out).spec.fingerprint == made.spec.fingerprint
    assert targets(out) == targets(made.path)
    assert verify.verify(Cache.open(out)).status == "ok"
    known_probes = [Cache.open(out).read(part)[1] for part in made.parts()]
    expected = [made.read(part)[1] for part in made.parts()]
    for ours, theirs in zip(known_probes, expected, strict=True):
        assert set(ours[ours != theirs]) <= {0}
    if wanted == "0.3":  # the first row is one that both look at
        assert all(probes[0] for probes in known_probes)
        assert "2 of 4 blocks" not in said.err
    else:
        assert "3 of 4 blocks with the 22 samples, and 74 others" in said.err


def test_mixed_samples_come_in_whole_windows(mixed: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "few.zarr"
    assert kdcache("select", mixed, out, "--samples", "0.2").code == 0
    assert len(Cache.open(out).table) == 32  # two windows of 16
    made = lab.build(tmp_path / "made.zarr", list(Cache.open(out).table.keys), range(2), mixup=0.8)
    assert Cache.open(out).spec.fingerprint == made.spec.fingerprint
    assert targets(out) == targets(made.path)
    (tmp_path / "keys").write_text("\n".join(Cache.open(mixed).table.keys[:20]))
    said = kdcache("select", mixed, tmp_path / "no.zarr", "--samples", tmp_path / "keys")
    assert (said.code, "whole windows" in said.err) == (2, True)


def test_a_window_from_the_middle_keeps_its_partners(
    mixed: Path, tmp_path: Path, kdcache: Command
) -> None:
    keys = Cache.open(mixed).table.keys
    (tmp_path / "keys").write_text("\n".join(keys[32:48] + keys[96:]))  # and the last, short one
    out = tmp_path / "few.zarr"
    assert kdcache("select", mixed, out, "--samples", tmp_path / "keys").code == 0
    made = lab.build(tmp_path / "made.zarr", [*keys[32:48], *keys[96:]], range(2), mixup=0.8)
    assert targets(out) == targets(made.path)


@pytest.mark.parametrize(
    ("of", "keep", "same"),
    [
        (lab.THRESHOLD, "k=5", TargetSpec(5, 0.01, 1, 127, (1.0, 4.0), True, True)),
        (lab.THRESHOLD, "tau=0.05", TargetSpec(16, 0.05, 1, 127, (1.0, 4.0), True, True)),
        (lab.THRESHOLD, "k=3,tau=0.02", TargetSpec(3, 0.02, 1, 127, (1.0, 4.0), True, True)),
        (lab.FIXED, "k=4", TargetSpec(4, 0.0, 4, 127, (1.0, 2.0))),
        (lab.FIXED, "tau=0.03,min=2", TargetSpec(12, 0.03, 2, 127, (1.0, 2.0))),
    ],
)
def test_fewer_classes_are_nearly_what_the_teacher_would_have_kept(
    of: TargetSpec, keep: str, same: TargetSpec, tmp_path: Path, kdcache: Command
) -> None:
    """Codes are the teacher's; only the masses of the rest are rounded twice."""
    lab.build(tmp_path / "all.zarr", lab.keys(N), range(1), targets=of)
    out = tmp_path / "few.zarr"
    assert kdcache("select", tmp_path / "all.zarr", out, "--keep", keep).code == 0
    store = Cache.open(out)
    assert store.spec.targets == same
    assert store.spec.cut_from.startswith("sha256:")
    assert verify.verify(store).status == "ok"
    made = lab.build(tmp_path / "made.zarr", lab.keys(N), range(1), targets=same)
    assert store.spec.fingerprint != made.spec.fingerprint
    equal = []
    for part in store.parts():
        ours, theirs = store.read(part)[0], made.read(part)[0]
        a, b = codec.decode(ours, same), codec.decode(theirs, same)
        equal += (a.index_BK == b.index_BK).all(axis=1).tolist()  # of equal codes either may stay
        kept = np.array(equal[-len(ours) :])
        assert np.array_equal(
            codec.select_rows(ours, np.flatnonzero(kept)).code_E,
            codec.select_rows(theirs, np.flatnonzero(kept)).code_E,
        )
        assert np.allclose(a.tail_BT[kept], b.tail_BT[kept], rtol=0.08, atol=1e-4)
        if same.true_class:
            assert np.allclose(a.true_BP[kept], b.true_BP[kept], rtol=0.1, atol=1e-5)
            assert ((a.true_BP > 0) == (b.true_BP > 0))[kept].all()
            assert np.allclose(a.square_BQ[kept], b.square_BQ[kept], rtol=0.25, atol=1e-5)
        for t in same.temperatures:
            p = dense.densify(a, same, lab.CLASSES, t)
            assert abs(p.sum(axis=1) - 1).max() < 1e-5
    assert np.mean(equal) > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "k=17"), "k can be at most 16"),
        (("--keep", "min=2"), "k_min can be at most 1"),
        (("--keep", "tau=1e-3"), "tau must be at least 0.01"),
        (
            ("--keep", "k=0"),
            "k_max must be at least 1 and at most 65,534, found 0; pass such a number. It is",
        ),
        (("--keep", "min=0"), "k_min must be at least 1"),
        (("--keep", "q=3"), "cannot be read"),
        (("--keep", "k=2.5"), "cannot be read"),
        (("--views", "2:9"), "the cache has the views 0:5"),
        (("--views", "x"), "cannot be read"),
        (("--samples", "1.5"), "no share"),
        (("--samples", "none.txt"), "neither a share"),
        ((), "nothing is selected"),
    ],
)
def test_what_cannot_be_cut_is_explained(
    arguments: tuple[str, ...], message: str, whole: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("select", whole, tmp_path / "x.zarr", *arguments)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not (tmp_path / "x.zarr").exists()


def test_unknown_keys_are_named(whole: Path, tmp_path: Path, kdcache: Command) -> None:
    (tmp_path / "keys").write_text("photo-0001\nnobody\n")
    said = kdcache("select", whole, tmp_path / "x.zarr", "--samples", tmp_path / "keys")
    assert (said.code, "'nobody'" in said.err) == (2, True)


def test_another_cut_in_the_same_place_is_refused(whole: Path, tmp_path: Path) -> None:
    source = Cache.open(whole)
    pull.run(source, tmp_path / "x.zarr", select.plan(source, keep="k=4"))
    with pytest.raises(UsageError, match=r"k_max.*Choose another folder"):
        pull.run(source, tmp_path / "x.zarr", select.plan(source, keep="k=5"))
    store, moved = pull.run(source, tmp_path / "x.zarr", select.plan(source, keep="k=4"))
    assert (moved.made, moved.there, moved.bytes) == (0, 20, 0)
    (store.path / Part(2, 3).record).unlink()
    assert pull.run(source, store.path, select.plan(source, keep="k=4"))[1].made == 1


def test_a_source_that_lacks_a_part_gives_the_others(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "source.zarr")
    (tmp_path / "source.zarr" / Part(1, 2).record).unlink()
    source = Cache.open(tmp_path / "source.zarr")
    for keep, parts in (("", 19), ("k=4", 19)):
        out = tmp_path / f"out{keep}.zarr"
        with pytest.raises(CacheIncomplete, match=r"lacks 1 of the 20 .*view 1, block 2"):
            pull.run(source, out, select.plan(source, keep=keep))
        assert sum(Cache.open(out).present(p) for p in source.parts()) == parts


def test_two_labs_views_and_samples_are_one_cache(
    whole: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Other samples, overlapping ones, other views, blocks of other sizes: the same bytes."""
    known = lab.keys(N)
    a = lab.build(tmp_path / "a.zarr", known[:40], range(5))
    b = lab.build(tmp_path / "b.zarr", known[30:90], range(3))
    c = lab.build(tmp_path / "c.zarr", known[30:], range(2, 5))
    d = lab.build(tmp_path / "d.zarr", known[85:], range(3))  # one short block
    out = tmp_path / "all.zarr"
    said = kdcache("merge", out, a.path, b.path, c.path, d.path)
    assert said.code == 0, said.err
    assert Cache.open(out).spec.fingerprint == Cache.open(whole).spec.fingerprint
    assert targets(out) == targets(whole)
    assert verify.verify(Cache.open(out)).status == "ok"
    before = files(out)
    assert kdcache("merge", out, d.path, b.path, c.path, a.path).code == 0
    assert files(out) == before


def test_parts_that_no_source_has_are_reported_and_can_follow(
    tmp_path: Path, kdcache: Command
) -> None:
    known = lab.keys(64)
    a = lab.build(tmp_path / "a.zarr", known[:40], range(2))
    b = lab.build(tmp_path / "b.zarr", known[40:], range(1))
    said = kdcache("merge", tmp_path / "all.zarr", a.path, b.path)
    assert (said.code, "2 of 4 parts are in none" in said.err) == (0, True)
    b.resize(2)
    lab.write(b, Part(1, 0))
    assert kdcache("merge", tmp_path / "all.zarr", a.path, b.path).code == 0
    made = lab.build(tmp_path / "made.zarr", known, range(2))
    assert targets(tmp_path / "all.zarr") == targets(made.path)


def test_shares_of_a_mixed_cache_merge_and_others_do_not(
    mixed: Path, tmp_path: Path, kdcache: Command
) -> None:
    keys = Cache.open(mixed).table.keys
    (tmp_path / "rest").write_text("\n".join(keys[32:]))
    assert kdcache("select", mixed, tmp_path / "a.zarr", "--samples", "0.32").code == 0
    assert kdcache("select", mixed, tmp_path / "b.zarr", "--samples", tmp_path / "rest").code == 0
    said = kdcache("merge", tmp_path / "all.zarr", tmp_path / "b.zarr", tmp_path / "a.zarr")
    assert said.code == 0, said.err
    assert targets(tmp_path / "all.zarr") == targets(mixed)
    lab.build(tmp_path / "c.zarr", lab.keys(N)[::2], range(2), mixup=0.8)
    lab.build(tmp_path / "d.zarr", lab.keys(N)[1::2], range(2), mixup=0.8)
    said = kdcache("merge", tmp_path / "no.zarr", tmp_path / "c.zarr", tmp_path / "d.zarr")
    assert (said.code, "mixed within windows of 16" in said.err) == (1, True)


@pytest.mark.parametrize("overlap", ["same samples", "other samples"])
def test_a_conflicting_part_is_named(overlap: str, tmp_path: Path, kdcache: Command) -> None:
    known = lab.keys(N)
    a = lab.build(tmp_path / "a.zarr", known, range(3))
    few = known if overlap == "same samples" else [*known[:70], "photo-1234"]
    b = lab.build(tmp_path / "b.zarr", few, range(3))
    part = Part(1, 2)
    (b.path / part.record).unlink()
    lab.write(b, part, "2", shift=0.1)
    said = kdcache("merge", tmp_path / "all.zarr", a.path, b.path)
    assert said.code == 1
    assert f"view 1, block 2 of {b.path} is not as in {a.path}" in said.err


def test_other_pixels_are_a_conflict_and_unknown_ones_are_not(tmp_path: Path) -> None:
    known = lab.keys(20)
    a, b = (lab.build(tmp_path / f"{n}.zarr", known, range(2)) for n in "ab")
    (tmp_path / "keys").write_text("\n".join(a.table.keys[:9]))
    more = lab.build(tmp_path / "more.zarr", lab.keys(30), range(2))
    (tmp_path / "keys").write_text("\n".join(known))
    few = tmp_path / "few.zarr"
    pull.run(more, few, select.plan(more, wanted=str(tmp_path / "keys")))
    out = merge.run([Cache.open(few), a], tmp_path / "all.zarr")
    assert out.read(Part(1, 0))[1].all()  # those that are known
    stored, probes = b.read(Part(1, 0))
    (b.path / Part(1, 0).record).unlink()
    b.write(Part(1, 0), stored, probes ^ np.uint64(1), {}, {})
    with pytest.raises(CacheMismatch, match=r"view 1, block 0 of .*pixels differ"):
        merge.run([a, b], tmp_path / "no.zarr")


def test_other_teachers_and_images_are_refused(tmp_path: Path, kdcache: Command) -> None:
    a = lab.build(tmp_path / "a.zarr", lab.keys(20), range(1))
    b = lab.build(tmp_path / "b.zarr", lab.keys(20), range(1), targets=lab.FIXED)
    said = kdcache("merge", tmp_path / "no.zarr", a.path, b.path)
    assert (said.code, "targets.k_max: 16 against 12" in said.err) == (1, True)
    said = kdcache("merge", tmp_path / "no.zarr", a.path)
    assert (said.code, "two caches or more" in said.err) == (2, True)
    said = kdcache("merge", tmp_path / "no.zarr", a.path, a.path, "--block-size", 7)
    assert (said.code, "multiple of 16" in said.err) == (2, True)
    other = lab.table(lab.keys(21))
    other.label_N[3] += 1
    c = Cache.create(tmp_path / "c.zarr", lab.spec(other), other, 1)
    with pytest.raises(CacheMismatch, match=r"the label of 'photo-.*other images"):
        merge.run([a, c], tmp_path / "no.zarr")
    d = Cache.create(tmp_path / "d", replace(a.spec, renderer="kernels-1"), a.table, 1)
    for join in (lambda: merge.run([a, d], tmp_path / "no.zarr"), lambda: check_aligned(a, d)):
        with pytest.raises(CacheMismatch, match="renderer: 'kernels-2' against 'kernels-1'"):
            join()
    assert not (tmp_path / "no.zarr").exists()
