"""Cutting, fetching and joining caches of imported views: targets and parameters stay together."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.verify import verify
from cache_tools.views import imported
from cache_tools.views.imported import ImportedViews
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def sizes(folder: Path) -> Sizes:
    return writers.pictures(folder / "photos")


WholeCache = Callable[[str], Path]


@pytest.fixture
def whole(folder: Path, sizes: Sizes, kdcache: Command) -> WholeCache:
    """The cache of everything that a kind's files say, made once."""

    def make(kind: str) -> Path:
        out, source, size = folder / f"{kind}.zarr", folder / kind, ()
        if out.exists():
            return out
        if kind == "fkd":
            writers.fkd(source, sizes)
            size = ("--size", "32")
        elif kind == "tinyvit":
            writers.tinyvit(source, [n[4:] for n in sizes], [writers.label_of(n) for n in sizes])
        else:
            writers.ml_dr(source, sizes, mixed=kind == "mixed")
        name = {"mixed": "ml-dr", "plain": "ml-dr"}.get(kind, kind)
        data = ("--data", folder / "photos", *size)
        assert kdcache("import", name, source, "--out", out, *data).code == 0
        return out

    return make


def views(store: Cache, key: str, view: int) -> tuple[dict[int, int], ImportedViews, str]:
    """Codes by class, parameters and the partner's key of one view."""
    row = store.table.keys.index(key)
    part = Part(view, row // store.spec.block_size)
    at = np.array([row - store.spec.rows(part.block).start])
    said = codec.select_rows(store.read(part)[0], at)
    params = store.read_params(part).rows(at)
    ids = np.cumsum(said.index_delta_E, dtype=int) - 1
    codes = dict(zip(ids.tolist(), said.code_E.tolist(), strict=True))
    partner = store.table.keys[int(params.partner_B[0])] if store.spec.views.mixes else ""
    return codes, params, partner


def same(ours: Cache, theirs: Cache, keys: tuple[str, ...], numbers: range) -> bool:
    """Whether both say the same of some views, and show the same."""
    for key in keys:
        for view in numbers:
            a, b = views(ours, key, view), views(theirs, key, view)
            if a[0] != b[0] or a[2] != b[2]:
                return False
            if not np.array_equal(a[1].box_BP4, b[1].box_BP4) or (a[1].seed_B != b[1].seed_B).any():
                return False
    return True


def trains(out: Path, data: Path, tmp_path: Path, kdcache: Command, *more: str) -> Outcome:
    return kdcache(
        "train", "digits", "--cache", out, "--data", data, "--out", tmp_path / "run", "epochs=1",
        "views_per_epoch=2", "batch_size=6", "temperature=1.0", "threads=1", *more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["fkd", "plain", "tinyvit"])
def test_fewer_samples_keep_their_views(
    kind: str, whole: WholeCache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    source, out = Cache.open(whole(kind)), tmp_path / "few.zarr"
    said = kdcache("select", whole(kind), out, "--samples", "0.5")
    assert said.code == 0, said.err
    few = Cache.open(out)
    assert few.table.keys == source.table.keys[:6]
    assert same(few, source, few.table.keys, range(few.num_views))
    assert verify.verify(few).status == "ok"
    if kind == "fkd":
        done = kdcache("verify", out, "--data", folder / "photos")
        assert "of which 6 are shared" in done.out + done.err  # the rest is no sample of it
        assert trains(out, folder / "photos", tmp_path, kdcache, "--allow-partial").code == 0


@pytest.mark.parametrize("kind", ["fkd", "mixed", "tinyvit"])
def test_fewer_classes_keep_their_views(
    kind: str, whole: WholeCache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    source, out = Cache.open(whole(kind)), tmp_path / "few.zarr"
    url = f"file://{whole(kind)}"
    assert kdcache("pull", url, out, "--views", "0:2", "--keep", "k=1").code == 0
    few = Cache.open(out)
    assert (few.spec.targets.k_max, few.num_views) == (1, 2)
    for key in few.table.keys:
        for view in range(2):
            ours, theirs = views(few, key, view), views(source, key, view)
            best = max(theirs[0], key=lambda c: theirs[0][c])
            assert theirs[0][best] == ours[0].get(best, max(ours[0].values()))
            assert len(ours[0]) == 1
            assert ours[1].equals(theirs[1])
    for part in few.parts():
        a, b = few.read(part)[0], source.read(part)[0]
        ours, theirs = (codec.decode(x, s.spec.targets) for x, s in ((a, few), (b, source)))
        expected = 1 - theirs.probability_BK.max(axis=1)
        assert np.allclose(ours.tail_BT[:, 0], expected, rtol=0.08, atol=1e-4)
        assert np.array_equal(few.read(part)[1], source.read(part)[1])
    data = () if kind == "tinyvit" else ("--data", folder / "photos")
    assert kdcache("verify", out, *data).code == 0
    if data:
        assert trains(out, folder / "photos", tmp_path, kdcache).code == 0


def test_mixed_partners_cannot_be_left_out(
    whole: WholeCache, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("select", whole("mixed"), tmp_path / "few.zarr", "--samples", "0.5")
    assert (said.code, "partners would be missing" in said.err) == (2, True)
    assert "--views and --keep" in said.err
    assert not (tmp_path / "few.zarr").exists()


@pytest.mark.parametrize("kind", ["fkd", "tinyvit"])
def test_cuts_by_samples_merge_to_what_they_were_cut_from(
    kind: str, whole: WholeCache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    source = Cache.open(whole(kind))
    for name, keys in (("a", source.table.keys[:7]), ("b", source.table.keys[5:])):
        (tmp_path / name).write_text("\n".join(keys))
        cut = ("select", source.path, tmp_path / f"{name}.zarr", "--samples", tmp_path / name)
        assert kdcache(*cut).code == 0
    out = tmp_path / "all.zarr"
    said = kdcache("merge", out, tmp_path / "b.zarr", tmp_path / "a.zarr")
    assert said.code == 0, said.err
    assert "cannot be checked" in said.err  # nobody knows the teacher's weights
    assert Cache.open(out).spec.fingerprint == source.spec.fingerprint
    for pattern in ("targets/*/c/**/*", "views/*/c/**/*"):
        chunks = [p for p in source.path.glob(pattern) if p.is_file()]
        assert chunks
        for path in chunks:
            there = out / path.relative_to(source.path)
            assert there.read_bytes() == path.read_bytes()
    assert verify.verify(Cache.open(out)).status == "ok"
    assert kdcache("merge", out, tmp_path / "b.zarr", tmp_path / "a.zarr").code == 0


def test_partners_are_found_again_in_the_table_of_a_merge(
    folder: Path, sizes: Sizes, tmp_path: Path, kdcache: Command
) -> None:
    """Two labs import other pictures: a partner's row is another one in the whole."""
    others = writers.pictures(tmp_path / "more", 7)
    for old in sizes:
        (tmp_path / f"more/{old}.JPEG").unlink()
        del others[old]
    writers.ml_dr(tmp_path / "dr-a", sizes)
    writers.ml_dr(tmp_path / "dr-b", others)
    for name, data in (("a", folder / "photos"), ("b", tmp_path / "more")):
        source = (tmp_path / f"dr-{name}", "--data", data, "--out", tmp_path / f"{name}.zarr")
        assert kdcache("import", "ml-dr", *source).code == 0
    out = tmp_path / "all.zarr"
    said = kdcache("merge", out, tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert said.code == 0, said.err
    store = Cache.open(out)
    for name in "ab":
        one = Cache.open(tmp_path / f"{name}.zarr")
        assert same(store, one, one.table.keys, range(one.num_views))
    for old in sizes:
        shutil.copy(folder / f"photos/{old}.JPEG", tmp_path / f"more/{old}.JPEG")
    assert kdcache("verify", out, "--data", tmp_path / "more").code == 0
    assert trains(out, tmp_path / "more", tmp_path, kdcache).code == 0


def test_other_boxes_of_one_sample_are_a_conflict(
    whole: WholeCache, tmp_path: Path, kdcache: Command
) -> None:
    source = Cache.open(whole("fkd"))
    (tmp_path / "keys").write_text("\n".join(source.table.keys[:8]))
    few = tmp_path / "few.zarr"
    assert kdcache("select", source.path, few, "--samples", tmp_path / "keys").code == 0
    store, part = Cache.open(few), Part(1, 0)
    (stored, probes), params = store.read(part), store.read_params(part)
    params = ImportedViews(**imported.blank(8, store.spec) | {
        "box_BP4": params.box_BP4, "flip_BP": 1 - params.flip_BP
    })  # fmt: skip
    (few / part.record).unlink()
    assert store.write(part, stored, np.zeros_like(probes), {}, {}, params)
    said = kdcache("merge", tmp_path / "all.zarr", source.path, few)
    assert said.code == 1
    assert "view 1, block 0 of" in said.err
    assert "the views or the pixels differ" in said.err
