"""Cuts and merges of imported caches: their views come along."""

from collections.abc import Callable
from pathlib import Path

import foreign_files as writers
import numpy as np
import pytest
from conftest import Outcome
from foreign_files import Sizes

from cache_tools import assemble, codec
from cache_tools.commits import Part
from cache_tools.store import Store

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def sizes(folder: Path) -> Sizes:
    return writers.pictures(folder / "photos")


@pytest.fixture
def imported(folder: Path, sizes: Sizes, tmp_path: Path, kdcache: Command) -> Callable[..., Path]:
    """A cache of one of the formats, of all or some of the pictures."""

    def call(kind: str, *more: object, name: str = "whole") -> Path:
        if kind == "tinyvit":
            keys, labels = [n.split("/")[1] for n in sizes], [writers.label_of(n) for n in sizes]
            writers.tinyvit(tmp_path / kind, keys, labels)
        else:
            getattr(writers, kind)(tmp_path / kind, sizes)
        out = tmp_path / f"{name}.zarr"
        named = kind.replace("_", "-")
        data = ("--data", folder / "photos", "--out", out)
        said = kdcache("import", named, tmp_path / kind, *data, *more)
        assert said.code == 0, said.err
        return out

    return call


def parts(store: Store) -> dict[str, bytes]:
    """Chunks of all parts but for fingerprints of pixels."""
    found = {}
    for part in store.parts():
        found |= {n: d for n, d in store.load(part)[1].items() if not n.startswith("probes")}
    return found


def trains(out: Path, folder: Path, run: Path, kdcache: Command) -> None:
    said = kdcache(
        "train", "digits", "--cache", out, "--data", folder / "photos", "--out", run, "epochs=1",
        "views_per_epoch=1", "batch_size=4", "temperature=1.0", "threads=1", "--allow-partial",
    )  # fmt: skip
    assert said.code == 0, said.err


def test_fewer_samples_and_the_others_are_the_whole_again(
    imported: Callable[..., Path], folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = imported("fkd", "--size", 32)
    whole, data = Store.open(out), ("--data", folder / "photos")
    some = [key for row, key in enumerate(whole.table.keys) if row % 3 != 1]
    others = [key for key in whole.table.keys if key not in some]
    for name, keys in (("some", some), ("others", others)):
        (tmp_path / name).write_text("".join(f"{key}\n" for key in keys))
        cut = tmp_path / f"{name}.zarr"
        said = kdcache("select", out, cut, "--samples", tmp_path / name)
        assert said.code == 0, said.err
        assert kdcache("verify", cut, *data, "--allow-partial").code in (0, 2)
        few = Store.open(cut)
        rows = np.array([whole.table.keys.index(key) for key in few.table.keys])
        for view in range(whole.num_views):
            mine, theirs = (s.read_params(Part(view, 0)) for s in (few, whole))
            assert mine.equals(theirs.rows(rows))
    trains(tmp_path / "some.zarr", folder, tmp_path / "run", kdcache)
    joined = tmp_path / "joined.zarr"
    said = kdcache("merge", joined, tmp_path / "others.zarr", tmp_path / "some.zarr")
    assert said.code == 0, said.err
    assert parts(Store.open(joined)) == parts(whole)
    assert Store.open(joined).spec.fingerprint == whole.spec.fingerprint
    assert kdcache("verify", joined, *data).code == 0


@pytest.mark.parametrize(
    ("kind", "more"), [("fkd", ("--size", 32)), ("ml_dr", ()), ("tinyvit", ("--classes", 3))]
)
def test_fewer_classes_of_the_same_views(
    kind: str,
    more: tuple[object, ...],
    imported: Callable[..., Path],
    folder: Path,
    tmp_path: Path,
    kdcache: Command,
) -> None:
    out, few = imported(kind, *more), tmp_path / "few.zarr"
    said = kdcache("select", out, few, "--keep", "k=1")
    assert said.code == 0, said.err
    whole, cut = Store.open(out), Store.open(few)
    for part in cut.parts():
        assert cut.read_params(part).equals(whole.read_params(part))
        before, after = (
            codec.decode(s.read(part)[0], s.spec.targets, np.arange(len(s.table)))
            for s in (whole, cut)
        )
        assert after.index_BK[:, 0].tolist() == [
            int(index[p.argmax()])
            for index, p in zip(before.index_BK, before.probability_BK, strict=True)
        ]
        assert after.probability_BK.max(axis=1) == pytest.approx(
            before.probability_BK.max(axis=1), abs=0.02
        )
    shown = kind != "tinyvit"  # whose views nobody else can draw
    assert kdcache("verify", few, *(("--data", folder / "photos") if shown else ())).code == 0
    if shown:
        trains(few, folder, tmp_path / "run", kdcache)


def test_mixed_views_keep_their_partners(
    imported: Callable[..., Path], folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    """Partners are any samples: no cut may lose one, and a merge knows them by their new rows."""
    out = imported("ml_dr")
    said = kdcache("select", out, tmp_path / "few.zarr", "--samples", "0.5")
    assert said.code == 2
    assert "--views and --keep" in said.err
    for views in ("0:2", "1:3"):
        assert kdcache("select", out, tmp_path / views[0], "--views", views).code == 0
    said = kdcache("merge", tmp_path / "joined", tmp_path / "0", tmp_path / "1")
    assert said.code == 0, said.err
    whole = Store.open(out)
    assert parts(Store.open(tmp_path / "joined")) == parts(whole)
    assembly = assemble.Assembly([whole], [np.arange(len(whole.table))[::-1]])
    rows = np.arange(len(whole.table))
    made = assembly.gather(0, np.zeros_like(rows), rows[::-1], rows)
    assert made.params is not None
    theirs = whole.read_params(Part(0, 0))
    assert (len(rows) - 1 - made.params.partner_B[::-1] == theirs.partner_B).all()


def test_two_caches_that_saw_other_boxes_are_not_merged(
    imported: Callable[..., Path], tmp_path: Path, kdcache: Command
) -> None:
    """The same targets and other parameters: found in the parts that both have."""
    a = imported("fkd", "--size", 32, name="a")
    store = Store.open(a)
    b = Store.create(tmp_path / "b.zarr", store.spec, store.table, store.num_views)
    for part in store.parts():
        (stored, probes), params = store.read(part), store.read_params(part)
        params.flip_BP[2] ^= 1
        assert b.write(part, stored, probes, {}, {}, params)
    for more in ((), ("--block-size", 2048)):
        said = kdcache("merge", tmp_path / "c.zarr", a, b.path, *more)
        assert said.code == 1, said.err
        assert "is not as in" in said.err


def test_a_block_size_that_cannot_be_is_explained(
    made: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("merge", tmp_path / "c.zarr", made, made, "--block-size", 4)
    assert said.code == 2
    assert "--block-size 4 cannot be: block_size must be a multiple of window" in said.err
