"""A cache in other formats: what their own readers find there is what the cache says."""

import gc
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from benchmarks.peers import TinyViTReader
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from tests.helpers import foreign_files as writers
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def kept(store: Cache, view: int) -> list[dict[int, float]]:
    """Classes and probabilities of one view of every sample."""
    said = codec.decode(store.read_view(view), store.spec.targets)
    return [
        {int(c): float(p) for c, p in zip(index, probability, strict=True) if p > 0}
        for index, probability in zip(said.index_BK, said.probability_BK, strict=True)
    ]


def test_webdataset_reads_the_columns(digits_cache: Path, tmp_path: Path, kdcache: Command) -> None:
    done = kdcache(
        "convert", digits_cache, tmp_path / "w", "--to", "webdataset", "--per-file", 30, "--json"
    )
    facts = json.loads(done.out)
    assert (facts["files"], facts["samples"], facts["views"]) == (4, 100, 4)
    store, found = Cache.open(digits_cache), {}
    urls = sorted(str(path) for path in (tmp_path / "w").glob("*.tar"))
    with warnings.catch_warnings():  # it leaves its files open
        warnings.simplefilter("ignore", ResourceWarning)
        for sample in wds.WebDataset(urls, shardshuffle=False).decode():
            found[sample["__key__"]] = sample["kd.npz"]
        gc.collect()
    assert list(found) == list(store.table.keys)
    rows = np.arange(100)
    for view in range(4):
        params, mix = view_params.parameters(store, view, rows), view_params.mixing(store, view)
        for row, expected in enumerate(kept(store, view)):
            arrays = found[store.table.keys[row]]
            count = arrays["count"][view]
            pairs = zip(arrays["index"][view][:count], arrays["probability"][view], strict=False)
            assert {int(c): float(p) for c, p in pairs} == expected
            assert (np.diff(arrays["probability"][view]) <= 0).all()
            assert arrays["box"][view].tolist() == params.box_B4[row].tolist()
            assert bool(arrays["flip"][view]) == bool(params.flip_B[row])
            assert arrays["partner"][view] == mix.partner_B[row]
            assert arrays["lam"][view] == np.float32(mix.lam_B[row] / 65536)


def test_parquet_has_a_row_per_view(digits_cache: Path, tmp_path: Path, kdcache: Command) -> None:
    assert kdcache("convert", digits_cache, tmp_path / "p", "--to", "parquet").code == 0
    store = Cache.open(digits_cache)
    rows = pq.read_table(tmp_path / "p").to_pylist()
    assert len(rows) == 400
    expected = [kept(store, view) for view in range(4)]
    for row in rows:
        at = store.table.keys.index(row["key"])
        pairs = zip(row["index"], row["probability"], strict=True)
        assert dict(pairs) == expected[row["view"]][at]
        assert row["label"] == store.table.label_N[at]
        assert len(row["box"]) == 4
        assert abs(sum(row["probability"]) + row["tail"][0] - 1) < 1e-5


def test_what_is_written_is_not_written_again(
    digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "w"
    command = ("convert", digits_cache, out, "--to", "webdataset", "--per-file", 30)
    assert kdcache(*command).code == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")}
    killed = out / "soft-0002.tar.0123456789ab.partial"
    killed.touch()
    (out / "soft-0002.tar").unlink()
    assert kdcache(*command).code == 0
    for path, (mtime, data) in before.items():
        assert path.read_bytes() == data
        assert (path.stat().st_mtime_ns == mtime) == (path.name != "soft-0002.tar")
    damaged = out / "soft-0001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"damaged")
    said = kdcache(*command)
    assert (said.code, "soft-0001.tar is damaged" in said.err) == (0, True)
    assert damaged.read_bytes() == before[damaged][1]
    assert kdcache(*command[:-1], 20).code == 2
    note = out / "_kdcache.json"
    note.write_text("{")
    assert f"Remove {out}" in kdcache(*command).err
    for path in out.iterdir():
        if path != killed:
            path.unlink()
    assert kdcache(*command).code == 0  # killed before its note
    assert kdcache("convert", digits_cache, out, "--to", "parquet").code == 2


def test_a_cache_that_is_not_whole_is_not_converted(
    mutable_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    (mutable_cache / Part(3, 0).record).unlink()
    said = kdcache("convert", mutable_cache, tmp_path / "w", "--to", "webdataset")
    assert (said.code, (tmp_path / "w").exists()) == (1, False)
    assert "view 3, block 0" in said.err


@pytest.fixture
def tinyvit(tmp_path: Path, kdcache: Command) -> tuple[Path, list[str], np.ndarray]:
    """Saved logits, their keys and records, and the cache they became."""
    sizes = writers.pictures(tmp_path / "photos")
    keys = [str(i) for i in range(len(sizes))]
    records = writers.tinyvit(tmp_path / "t", keys, [writers.label_of(n) for n in sizes])
    (tmp_path / "order.txt").write_text("".join(f"{name}.JPEG\n" for name in sizes))
    data = ("--data", tmp_path / "photos", "--out", tmp_path / "c.zarr")
    assert kdcache("import", "tinyvit", tmp_path / "t", *data).code == 0
    return tmp_path / "c.zarr", keys, records


def test_tinyvit_gets_back_what_it_gave(
    tinyvit: tuple[Path, list[str], np.ndarray], tmp_path: Path, kdcache: Command
) -> None:
    """In its own reader's steps: seeds and classes are the same, probabilities within a code."""
    cache, keys, records = tinyvit
    order = ("--dataset-index", tmp_path / "order.txt")
    assert kdcache("convert", cache, tmp_path / "o", "--to", "tinyvit", *order).code == 0
    for epoch in range(2):
        folder = tmp_path / f"o/logits_top2_epoch{epoch}"
        assert (folder / "rank0-values.bin").stat().st_size == 12 * len(keys)
        with TinyViTReader(folder, 2) as reader:
            for i, key in enumerate(keys):
                seed, index, p = reader.read(key)
                expected = records[epoch, i]
                assert seed == expected["seed"]
                assert index.tolist() == expected["index"].tolist()
                assert np.abs(p.astype("f4") - expected["p"].astype("f4")).max() < 0.02
                assert p.astype("f8").sum() <= 1
    again = ("--data", tmp_path / "photos", "--out", tmp_path / "d.zarr")
    assert kdcache("import", "tinyvit", tmp_path / "o", *again).code == 0
    a, b = (Cache.open(tmp_path / f"{x}.zarr") for x in "cd")
    for view in range(2):
        assert a.read_params(Part(view, 0)).equals(b.read_params(Part(view, 0)))
        for one, two in zip(kept(a, view), kept(b, view), strict=True):
            assert one.keys() == two.keys()
            assert max(abs(one[c] - two[c]) for c in one) < 0.02


def test_views_that_tinyvit_cannot_draw_are_not_handed_to_it(
    digits_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    said = kdcache("convert", digits_cache, tmp_path / "t", "--to", "tinyvit")
    assert said.code == 2
    assert "other views than those" in " ".join(said.err.split())
    done = kdcache("convert", digits_cache, tmp_path / "t", "--to", "tinyvit", "--without-seeds")
    assert done.code == 0
    store = Cache.open(digits_cache)
    k = store.spec.targets.k_max
    with TinyViTReader(tmp_path / f"t/logits_top{k}_epoch2", k) as reader:
        for row, expected in enumerate(kept(store, 2)):
            seed, index, p = reader.read(store.table.keys[row])
            assert (seed, len(set(index.tolist()))) == (0, k)
            assert (np.diff(p) <= 0).all()
            found = dict(zip(index.tolist(), p.tolist(), strict=True))
            assert all(abs(found[c] - q) < 1e-3 for c, q in expected.items())


def test_keys_that_webdataset_would_cut_are_refused(tmp_path: Path, kdcache: Command) -> None:
    np.savez(tmp_path / "a.npz", logits=np.zeros((2, 3), "f4"), keys=np.array(["a.b", "c"]))
    assert kdcache("import", "dense", tmp_path / "a.npz", "--out", tmp_path / "c").code == 0
    said = kdcache("convert", tmp_path / "c", tmp_path / "w", "--to", "webdataset")
    assert (said.code, "'a.b'" in said.err) == (1, True)
    assert kdcache("convert", tmp_path / "c", tmp_path / "p", "--to", "parquet").code == 0


def test_imported_views_are_exported_whole(tmp_path: Path, kdcache: Command) -> None:
    sizes = writers.pictures(tmp_path / "photos")
    writers.ml_dr(tmp_path / "dr", sizes)
    data = ("--data", tmp_path / "photos", "--out", tmp_path / "c")
    assert kdcache("import", "ml-dr", tmp_path / "dr", *data).code == 0
    assert kdcache("convert", tmp_path / "c", tmp_path / "p", "--to", "parquet").code == 0
    store = Cache.open(tmp_path / "c")
    for row in pq.read_table(tmp_path / "p").to_pylist():
        at, params = store.table.keys.index(row["key"]), store.read_params(Part(row["view"], 0))
        assert row["partner_box"] == params.box_BP4[at, 1].tolist()
        assert row["operation"] == params.codes_BPL[at, 0].tolist()
        assert row["weight"] == np.float32(params.weight_B[at] / 65536)
    shutil.rmtree(tmp_path / "p")
