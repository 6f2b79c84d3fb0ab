"""Logits that somebody already has: in, held against what they were, and what is refused."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cache_tools.combine import diff
from cache_tools.errors import CacheMismatch, DataError, NonFinite, UsageError
from cache_tools.importers import dense as importer
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import dense
from cache_tools.targets.keep import of_all_classes

N, C = 3000, 50


def logits(views: int = 1, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((views, N, C)) * 3
    return values.astype("f4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same logits in every kind of file, and their cache."""
    out = tmp_path_factory.mktemp("dense")
    values = logits()[0]
    keys = np.array([f"photo-{i}" for i in range(N)])
    np.save(out / "a.npy", values)
    np.savez(out / "a.npz", logits=values, keys=keys, labels=values.argmax(1))
    save_file({"logits": values}, out / "a.safetensors")
    importer.run(out / "a.npz", out / "a.zarr", of_all_classes("tau=1e-3,max=20"), "mine")
    return out


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors"])
def test_what_comes_back_is_close(
    name: str, folder: Path, tmp_path: Path, kdcache: Callable[..., object]
) -> None:
    out = tmp_path / "c.zarr"
    done = kdcache("import", "dense", folder / name, "--out", out, "--keep", "k=20", "--json")
    assert (done.code, json.loads(done.out)["kept_classes_mean"]) == (0, 20.0)
    facts = json.loads(kdcache("diff", folder / name, out, "--json").out)
    assert facts["compared"] == N
    assert facts["top1_agreement"] > 98  # near ties may fall either way
    assert 0 <= facts["kl_t1_mean"] < 0.02 < facts["kl_t1_mean"] + facts["l1_mean"]
    assert facts["kl_t1_p99"] < 0.1
    assert facts["bytes_per_view"]["b"] < 45 < facts["bytes_per_view"]["a"] == 200
    assert kdcache("verify", out).code == 0


def test_keys_labels_and_every_view_are_taken(tmp_path: Path) -> None:
    values = logits(views=3)
    keys = np.array([f"k{i}" for i in range(N)])
    np.savez(tmp_path / "v.npz", logits=values, keys=keys, labels=np.arange(N) % C)
    store = importer.run(
        tmp_path / "v.npz", tmp_path / "c.zarr", of_all_classes("k=50,levels=200"), "mine"
    )
    assert (store.num_views, store.spec.teacher.name, len(store.table)) == (3, "mine", N)
    row = store.table.keys.index("k7")
    assert store.table.label_N[row] == 7
    side = diff.OfCache(store)
    for view in range(3):
        restored = side.distributions(view, np.array([row]), 1.0)
        assert np.abs(restored - dense.softmax(values[view, 7:8])).max() < 0.01


def test_run_again_goes_on(folder: Path, tmp_path: Path) -> None:
    keep = of_all_classes("k=5")
    store = importer.run(folder / "a.npy", tmp_path / "c.zarr", keep, "mine")
    before = store.content_id()
    (store.path / Part(0, 0).record).unlink()
    assert importer.run(folder / "a.npy", tmp_path / "c.zarr", keep, "mine").content_id() == before
    with pytest.raises(UsageError, match="another cache"):
        importer.run(folder / "a.npy", tmp_path / "c.zarr", of_all_classes("k=6"), "mine")


def test_infinite_logits_are_named_and_not_stored(tmp_path: Path) -> None:
    values = logits()[0]
    values[1234, 5] = np.inf
    keys = np.array([f"photo-{i}" for i in range(N)])
    np.savez(tmp_path / "a.npz", logits=values, keys=keys)
    with pytest.raises(NonFinite, match=r"'photo-1234' in .*a.npz"):
        importer.run(tmp_path / "a.npz", tmp_path / "c.zarr", of_all_classes("k=5"), "mine")
    assert not Cache.open(tmp_path / "c.zarr").present(Part(0, 0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((2, 3, 4, 5), "f4")}, r"\[N, C\] or \[V, N, C\]"),
        ({"logits": np.zeros((2, 3), "i8")}, "Logits are floats"),
        ({"logits": np.array([{}, 1])}, "cannot be read"),
        ({"p": np.zeros((2, 3)), "q": np.zeros(2)}, "no array named logits"),
        ({"logits": np.zeros((2, 3)), "keys": np.array(["a", "a"])}, "occurs twice"),
        ({"logits": np.zeros((2, 3)), "keys": np.array(["a", "b\nc"])}, "line break"),
        ({"logits": np.zeros((2, 3)), "keys": np.array(["a"])}, "must have 2 entries"),
        ({"logits": np.zeros((2, 3)), "labels": np.array([0, 3])}, "a.npz go from 0 to 3"),
        ({"logits": np.zeros((2, 3)), "labels": np.array([-2, 0])}, "go from -2 to 0"),
        ({"logits": np.zeros((2, 3)), "labels": np.array([0, 2**32])}, "go from 0 to 4294967296"),
    ],
)
def test_other_files_are_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        importer.run(tmp_path / "a.npz", tmp_path / "c.zarr", of_all_classes("k=2"), "mine")
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("keep", ["k", "k=x", "tau=2", "size=3", "max=3,min=9", "min=0", "k=0"])
def test_what_to_keep_is_explained(keep: str) -> None:
    with pytest.raises(UsageError, match=r"tau=1e-3,k_max=64"):
        of_all_classes(keep)


def test_other_samples_or_classes_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros((5, C + 1), "f4"))
    np.savez(tmp_path / "keys.npz", logits=np.zeros((1, C)), keys=np.array(["x"]))
    cache = diff.open_side(str(folder / "a.zarr"))
    with pytest.raises(CacheMismatch, match="51 classes"):
        diff.diff(diff.open_side(str(tmp_path / "other.npy")), cache)
    with pytest.raises(CacheMismatch, match="share no sample"):
        diff.diff(diff.open_side(str(tmp_path / "keys.npz")), cache)


def test_a_limit_compares_some_and_is_reported(folder: Path) -> None:
    sides = [diff.open_side(str(folder / name)) for name in ("a.npz", "a.zarr")]
    assert diff.diff(*sides, limit=500)["compared"] == 500


def test_imported_logits_cannot_be_replayed(
    folder: Path, digits: Path, kdcache: Callable[..., object], tmp_path: Path
) -> None:
    for command in (
        ("verify", folder / "a.zarr", "--data", digits),
        ("train", "digits", "--cache", folder / "a.zarr", "--data", digits, "--out", tmp_path),
        ("views", folder / "a.zarr", "--data", digits, "--out", tmp_path / "s.png"),
    ):
        said = kdcache(*command)
        assert said.code == 2
        assert "imported from logits" in said.err


def test_probabilities_are_refused_or_declared(tmp_path: Path, kdcache: Callable[..., Any]) -> None:
    p = dense.softmax(logits()[0][:200]).astype("f4")
    p[:3] = np.eye(C)[:3]  # zeros, which have no logarithm
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "half.npy", p.astype("f2"))
    np.save(tmp_path / "log.npy", np.log(np.maximum(p, 1e-30)))
    for name in ("p.npy", "half.npy"):
        refused = kdcache("import", "dense", tmp_path / name, "--out", tmp_path / "no")
        assert (refused.code, "--probabilities" in refused.err) == (2, True)
        assert not (tmp_path / "no").exists()
    keep = of_all_classes("k=50,levels=200")
    declared = importer.run(tmp_path / "p.npy", tmp_path / "a", keep, "x", probabilities=True)
    same = importer.run(tmp_path / "log.npy", tmp_path / "b", keep, "x")
    assert declared.content_id() == same.content_id()
    row = np.arange(200)
    order = np.array([int(key) for key in declared.table.keys])
    stored = diff.OfCache(declared).distributions(0, row, 1.0)
    assert np.abs(stored - p[order]).max() < 0.01
    np.save(tmp_path / "logits.npy", logits()[0][:200])
    with pytest.raises(DataError, match=r"is no distribution.*Leave --probabilities out"):
        importer.run(tmp_path / "logits.npy", tmp_path / "c", keep, "x", probabilities=True)
    with pytest.raises(UsageError, match="holds probabilities"):
        diff.open_side(str(tmp_path / "p.npy"))


def test_bfloat16_is_what_it_is_in_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    values = torch.from_numpy(logits()[0][:100]).bfloat16()
    save_tensors({"logits": values}, tmp_path / "b.safetensors")
    np.save(tmp_path / "f.npy", values.float().numpy())
    words = values.view(torch.int16).numpy().view("V2")
    np.save(tmp_path / "b.npy", words)  # as numpy saves an array of ml_dtypes.bfloat16
    keep = of_all_classes("k=50")
    ids = {
        importer.run(tmp_path / name, tmp_path / f"{name}.c", keep, "x").content_id()
        for name in ("b.safetensors", "b.npy", "f.npy")
    }
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.npy", b"", "e.npy cannot be read: No data left in file. Fetch or write it again."),
        ("l.npy", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("z.npz", b"PK\3\4 no zip", "z.npz"),
        ("s.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("h.safetensors", (2**26).to_bytes(8, "little") + bytes(2**25), "header would have 67,108"),
        ("t.npz", {"a": np.zeros((4, 5), "f4"), "b": np.zeros((4, 5), "f4")}, "only a, b"),
        ("o.npy", np.zeros((20, 1), "f4"), "two or more classes"),
        ("i.npy", np.zeros((20, 5), "u2"), "Logits are floats"),
    ],
)
def test_files_that_hold_no_logits_are_named(
    tmp_path: Path, kdcache: Callable[..., Any], name: str, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.savez(tmp_path / name, **content) if isinstance(content, dict) else np.save(
            tmp_path / name, content
        )
    refused = kdcache("import", "dense", tmp_path / name, "--out", tmp_path / "c")
    assert (refused.code, "Traceback" in refused.err) == (1, False)
    assert message in " ".join(refused.err.split())


def test_a_member_that_is_no_array_is_named(tmp_path: Path, kdcache: Callable[..., Any]) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("logits.npy", b"no array")
    refused = kdcache("import", "dense", tmp_path / "a.npz", "--out", tmp_path / "c")
    assert (refused.code, "member 'logits' is no array of numpy" in refused.err) == (1, True)
