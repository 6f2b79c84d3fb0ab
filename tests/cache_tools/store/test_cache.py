import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache_tools.data.images import ImageDataset
from cache_tools.errors import (
    CacheDamaged,
    CacheIncomplete,
    CacheMismatch,
    CacheNotFound,
    KdcacheError,
    UsageError,
)
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.storage import atomic
from cache_tools.storage.folder import Folder
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.verify import verify
from tests.helpers import lab
from tests.helpers.paths import ROOT

CODE = "targets/code/c/2/0"


def test_the_cell_of_the_guide_reads_one_view(
    digits_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dozen lines of plain zarr and numpy, as they stand in the guide; none of ours."""
    guide = (ROOT / "docs/guide/own-trainer.md").read_text("utf-8")
    cell = guide.split("## Reading a cache without")[1].split("```python\n")[1].split("```")[0]
    assert [line for line in cell.splitlines() if "import" in line] == ["import numpy as np, zarr"]
    assert (
        len([line for line in cell.splitlines() if line]) <= 15
    )  # a dozen, two for the import and the spec, and the print
    found: dict[str, Any] = {}
    exec(cell.replace("build/digits-cache.zarr", str(digits_cache)), found)

    store = Cache.open(digits_cache)
    ours = codec.decode(store.read(Part(found["view"], 0))[0], store.spec.targets)
    row, count = found["row"], len(found["index"])
    assert found["key"] == store.table.keys[row]
    assert found["index"].tolist() == ours.index_BK[row][:count].tolist()
    assert np.allclose(found["p"], ours.probability_BK[row][:count], atol=1e-7)
    assert np.isclose(found["tail"], ours.tail_BT[row, 0], rtol=1e-6)
    assert found["key"] in capsys.readouterr().out


def test_a_whole_cache_is_found_whole(digits_cache: Path, images: ImageDataset) -> None:
    verdict = verify.verify(Cache.open(digits_cache), images)
    assert verdict.as_dict() == {
        "verdict": "ok",
        "parts": 4,
        "images": 100,
        "probes": 16,
        "recomputed": 0,
        "coverage": {"samples": 100, "by_key": 100, "by_digest": 0, "missing": 0, "extra": 0},
        "problems": [],
        "foreign": [],
        "mended": [],
    }


@pytest.mark.parametrize("name", ["count/c/2/0", "index_delta/c/2/0", "code/c/2/0", "tail/c/0/2/0"])
def test_a_flipped_bit_is_named(mutable_cache: Path, name: str) -> None:
    chunk = mutable_cache / "targets" / name
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    store = Cache.open(mutable_cache)
    with pytest.raises(CacheDamaged, match=f"targets/{name}.*kdcache cache"):
        store.read(Part(2, 0))
    problems = verify.verify(store).problems
    assert [type(p) for p in problems] == [CacheDamaged]
    assert store.present(Part(2, 0))  # the size is right: only the digest tells


@pytest.mark.parametrize("name", [CODE, "probes/pixels/c/0/2/0", Part(2, 0).record])
def test_what_is_missing_is_incomplete_and_never_zeros(mutable_cache: Path, name: str) -> None:
    (mutable_cache / name).unlink()
    store = Cache.open(mutable_cache)
    with pytest.raises(CacheIncomplete, match="kdcache cache"):
        store.read(Part(2, 0))
    assert not store.present(Part(2, 0))
    assert [type(p) for p in verify.verify(store).problems] == [CacheIncomplete]


@pytest.mark.parametrize("length", [0, 7])
def test_a_truncated_chunk_is_damage(mutable_cache: Path, length: int) -> None:
    (mutable_cache / CODE).write_bytes((mutable_cache / CODE).read_bytes()[:length])
    with pytest.raises(CacheDamaged):
        Cache.open(mutable_cache).read(Part(2, 0))


def test_a_chunk_of_another_part_is_damage(mutable_cache: Path) -> None:
    shutil.copy(mutable_cache / "targets/code/c/1/0", mutable_cache / CODE)
    with pytest.raises(CacheDamaged, match="SHA-256"):
        Cache.open(mutable_cache).read(Part(2, 0))


def test_a_record_of_another_part_is_damage(mutable_cache: Path) -> None:
    shutil.copy(mutable_cache / Part(1, 0).record, mutable_cache / Part(2, 0).record)
    with pytest.raises(CacheDamaged, match="belongs to another"):
        Cache.open(mutable_cache).read(Part(2, 0))


def test_a_changed_record_is_damage(mutable_cache: Path) -> None:
    path = mutable_cache / Part(2, 0).record
    path.write_text(path.read_text().replace('"view":2', '"view":3'))
    with pytest.raises(CacheDamaged, match="was changed"):
        Cache.open(mutable_cache).read(Part(2, 0))


def test_legal_bytes_with_impossible_values_are_found(mutable_cache: Path) -> None:
    """A record that fits its chunks proves nothing of the values: the verifier looks."""
    store = Cache.open(mutable_cache)
    stored, probes = store.read(Part(2, 0))
    stored.code_E[5] = 200
    (mutable_cache / Part(2, 0).record).unlink()
    store.write(Part(2, 0), stored, probes, {}, {})
    assert "a code outside 1..127" in str(verify.verify(store).problems[0])
    with pytest.raises(CacheDamaged, match="a code outside"):
        store.read(Part(2, 0))


def test_a_changed_manifest_is_refused(mutable_cache: Path) -> None:
    text = (mutable_cache / "zarr.json").read_text()
    (mutable_cache / "zarr.json").write_text(text.replace('"hflip":0.0', '"hflip":0.5'))
    with pytest.raises(CacheDamaged, match="its sha256 is not that of the rest"):
        Cache.open(mutable_cache)
    for version, advice in (("7.0", "pip install -U kdcache"), ("0.2", "made anew")):
        (mutable_cache / "zarr.json").write_text(text.replace('"1.2"', f'"{version}"'))
        with pytest.raises(CacheMismatch, match=f"format version {version}.*{advice}"):
            Cache.open(mutable_cache)
    (mutable_cache / "zarr.json").write_text(text[:90])
    with pytest.raises(CacheDamaged, match="cannot be read"):
        Cache.open(mutable_cache)


def test_a_changed_sample_table_is_refused(mutable_cache: Path) -> None:
    label = mutable_cache / "samples/label/c/0"
    shutil.copy(mutable_cache / "samples/height/c/0", label)
    with pytest.raises(CacheDamaged, match=r"samples differs from the manifest's digest"):
        _ = Cache.open(mutable_cache).table
    label.write_bytes(label.read_bytes()[:-1] + b"\0")
    with pytest.raises(CacheDamaged, match="samples/label does not decode"):
        _ = Cache.open(mutable_cache).table


@pytest.mark.parametrize(("label", "refused"), [(-7, True), (lab.CLASSES, True), (-1, False)])
def test_labels_that_are_no_class_are_refused(
    tmp_path: Path, label: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "_is_whole", lambda _: True)  # as an earlier kdcache wrote it
    table = lab.table(lab.keys(8))
    table.label_N[3] = label
    with pytest.raises(CacheDamaged, match="has labels") if refused else contextlib.nullcontext():
        store = Cache.create(tmp_path / "c", lab.spec(table), table, 1)
        assert store.table.label_N[3] == label


def test_metadata_that_would_mislead_others_is_found(mutable_cache: Path) -> None:
    path = mutable_cache / "targets/code/zarr.json"
    metadata = json.loads(path.read_text())
    metadata["fill_value"] = 0
    path.write_text(json.dumps(metadata))
    assert "targets/code/zarr.json: 'fill_value' is 0, not 255" in str(
        verify.verify(Cache.open(mutable_cache)).problems[0]
    )


def test_nothing_there_and_something_else_there(tmp_path: Path, digits_cache: Path) -> None:
    with pytest.raises(CacheNotFound, match="kdcache cache RECIPE"):
        Cache.open(tmp_path / "no.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(CacheNotFound, match="not a kdcache cache"):
        Cache.open(tmp_path / "other.zarr")
    store = Cache.open(digits_cache)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not an empty folder"):
        Cache.create(tmp_path / "full", store.spec, store.table, 2)


def test_growing_keeps_what_is_there(mutable_cache: Path, images: ImageDataset) -> None:
    store = Cache.open(mutable_cache)
    before = (mutable_cache / CODE).read_bytes()
    fingerprint = store.spec.fingerprint
    store.resize(6)
    again = Cache.open(mutable_cache)
    assert again.num_views == 6
    assert again.spec.fingerprint == fingerprint
    assert [p for p in again.parts() if not again.present(p)] == [Part(4, 0), Part(5, 0)]
    assert (mutable_cache / CODE).read_bytes() == before
    assert zarr.open_group(mutable_cache, mode="r")["targets/code"].shape[0] == 6
    stored, probes = again.read(Part(0, 0))
    again.write(Part(5, 0), stored, probes, {}, {})
    assert again.check_part(Part(5, 0)) is None


def test_a_full_disk_leaves_nothing_half_written(
    mutable_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Cache.open(mutable_cache)
    stored, probes = store.read(Part(0, 0))
    (mutable_cache / Part(2, 0).record).unlink()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(KdcacheError, match=r"disk is full.*same command again"):
        store.write(Part(2, 0), stored, probes, {}, {})
    assert not list(mutable_cache.rglob("*.partial"))
    assert not store.present(Part(2, 0))


def test_a_full_disk_is_reported_by_the_name_of_the_cache(
    mutable_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store, out = Cache.open(mutable_cache), tmp_path / "new.zarr"
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(KdcacheError, match=rf"disk is full: {out}/[^ ]* was not written") as full_:
        Cache.create(out, store.spec, store.table, 1)
    assert "partial" not in str(full_.value)


def test_who_comes_second_finds_the_part_done(mutable_cache: Path) -> None:
    store = Cache.open(mutable_cache)
    ours, probes = store.read(Part(0, 0))
    theirs, _ = store.read(Part(1, 0))
    (mutable_cache / Part(2, 0).record).unlink()
    assert store.write(Part(2, 0), ours, probes, {}, {}) is True
    assert Cache.open(mutable_cache).write(Part(2, 0), theirs, probes, {}, {}) is False
    assert (store.read(Part(2, 0))[0].code_E == ours.code_E).all()


def test_without_locks_two_writers_leave_one_that_holds(
    mutable_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an object store: the other's chunks land between our chunks and our look at them."""
    monkeypatch.setattr(Folder, "locked", lambda self: contextlib.nullcontext())
    store = Cache.open(mutable_cache)
    ours, probes = store.read(Part(0, 0))
    theirs = Cache.open(mutable_cache).read(Part(1, 0))[0]
    chunks = store._layout.encode_part(2, 0, theirs, probes)
    (mutable_cache / Part(2, 0).record).unlink()
    write, races = Folder.write, []

    def racing(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        if name == Part(2, 0).record and not races:
            races.append(name)
            write(folder, CODE, chunks[CODE])

    monkeypatch.setattr(Folder, "write", racing)
    assert store.write(Part(2, 0), ours, probes, {}, {}) is True
    assert races
    assert (store.read(Part(2, 0))[0].code_E == ours.code_E).all()


_RACER = """
import sys
from cache_tools.store.commits import Part
from cache_tools.store.cache import Cache
store = Cache.open(sys.argv[1])
targets, _ = store.read(Part(int(sys.argv[2]), 0))
_, probes = store.read(Part(0, 0))
sys.stdin.readline()
print(sum(store.write(Part(v, 0), targets, probes, {}, {}) for v in range(4, 24)))
"""


def test_two_processes_race_and_no_part_is_of_both(mutable_cache: Path) -> None:
    store = Cache.open(mutable_cache)
    store.resize(24)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(mutable_cache), str(own)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for own in (0, 1)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=600)[0]) for racer in racers]
    assert sum(won) == 20
    own = [store.read(Part(v, 0))[0].code_E.tobytes() for v in (0, 1)]
    found = [store.read(Part(v, 0))[0].code_E.tobytes() for v in range(4, 24)]
    assert [found.count(o) for o in own] == won


def test_what_killed_writers_left_is_swept_after_an_hour(mutable_cache: Path) -> None:
    old = [
        mutable_cache / "targets/code/c/0/0.0123456789ab.partial",
        mutable_cache.with_name("cache.zarr.0123456789ab.partial"),
    ]
    old[0].write_bytes(b"half a chunk")
    (old[1] / "samples").mkdir(parents=True)
    new = mutable_cache / "targets/code/c/0/0.0123456789ac.partial"
    new.write_bytes(b"another process is at it")
    for path in old:
        os.utime(path, (0, 0))
    assert atomic.sweep(mutable_cache) == 2
    assert [path.exists() for path in (*old, new)] == [False, False, True]


def test_records_are_canonical_json(digits_cache: Path) -> None:
    for path in digits_cache.glob("commits/*/*.json"):
        record = json.loads(path.read_bytes())
        assert path.read_bytes() == canonical_json(record)
        digest = record.pop("sha256")
        assert digest == sha256(canonical_json(record))
        assert record["statistics"]["kept_classes"] == 10
