"""Sparse logits of TinyViT become a cache; damaged files are refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.imported_caches import stored_probabilities, trains
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.mark.parametrize("keys", ["names", "numbers"])
def test_tinyvit_is_read_with_its_odd_cases(
    keys: str, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    names = list(sizes)
    own = [n.split("/")[1] if keys == "names" else str(i) for i, n in enumerate(names)]
    records = writers.tinyvit(tmp_path / "t", own, [writers.label_of(n) for n in names])
    done = import_("tinyvit", tmp_path / "t", tmp_path / "c.zarr")
    assert done.code == 0, done.err
    assert "Nobody but TinyViT" in " ".join(done.out.split())
    store, _ = Cache.open(tmp_path / "c.zarr"), None
    for view in range(2):
        seeds = store.read_params(Part(view, 0)).seed_B
        for i, name in enumerate(names):
            key, record = name.split("/")[1], records[view, i]
            assert seeds[store.table.keys.index(key)] == record["seed"]
            kept, tail = stored_probabilities(store, key, view)
            assert kept.keys() == set(record["index"].tolist())
            expected = max(1 - float(record["p"].astype("f8").sum()), 0)
            assert abs(tail - expected) < 0.01
            total = max(float(record["p"].astype("f8").sum()), 1)
            for c, p in zip(record["index"], record["p"], strict=True):
                assert abs(kept[int(c)] - float(p) / total) < 0.03
    assert kdcache("verify", tmp_path / "c.zarr").code == 0
    said = trains(tmp_path / "c.zarr", folder, tmp_path, kdcache)
    assert said.code == 2
    assert "imported" in said.err


def damage(root: Path, what: str) -> None:
    folder = root / "logits_top2_epoch1"
    values, keys = folder / "rank0-values.bin", folder / "rank0-keys.txt"
    data = bytearray(values.read_bytes())  # the first record is superseded by rank 1's
    match what:
        case "short":
            values.write_bytes(data[:-5])
        case "keys":
            keys.write_text(keys.read_text()[:-3])
        case "sparse":
            os.truncate(keys, 2**40)
        case "foreign":
            keys.write_text(keys.read_text().replace("n00_0\n", "n77_0\n"))
        case "rank":
            values.unlink()
        case "k":
            folder.rename(root / "logits_top3_epoch1")
        case "rises":
            data[20:22], data[22:24] = data[22:24], data[20:22]
            values.write_bytes(data)
        case "class":
            data[16:18] = b"\xff\xff"
            values.write_bytes(data)
        case "seed":
            data[15] |= 0x80
            values.write_bytes(data)
        case "epoch":
            folder.rename(root / "logits_top2_epoch2")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("short", "cut short"),
        ("keys", "cut short"),
        ("sparse", "too many for the keys"),
        ("foreign", "'n77_0' is none of"),
        ("rank", "first without"),
        ("k", "one kind at a time"),
        ("rises", "do not fall"),
        ("class", "outside of 0..2"),
        ("seed", "the invalid seed"),
        ("epoch", "lacks epoch 1"),
    ],
)
def test_damaged_logits_of_tinyvit_are_refused(
    what: str, message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    own = [name.split("/")[1] for name in sizes]
    writers.tinyvit(tmp_path / "t", own, [writers.label_of(n) for n in sizes])
    damage(tmp_path / "t", what)
    done = import_("tinyvit", tmp_path / "t", tmp_path / "c.zarr")
    assert done.code == 1
    assert message in " ".join(done.err.split())
