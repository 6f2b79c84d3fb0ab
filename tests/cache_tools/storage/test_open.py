"""A cache is the same wherever it lies: folder, zip, URL; and what the commands print of it."""

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheNotFound, UsageError
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.verify import verify


def zipped(cache: Path, tmp_path: Path, base: str | None) -> Path:
    return Path(
        shutil.make_archive(str(tmp_path / "z"), "zip", cache.parent if base else cache, base)
    )


@pytest.fixture
def memory(mutable_cache: Path) -> str:
    """The cache in fsspec's memory file system."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in mutable_cache.rglob("*"):
        if path.is_file():
            system.pipe_file(
                f"/lab/cache/{path.relative_to(mutable_cache).as_posix()}", path.read_bytes()
            )
    return "memory://lab/cache"


@pytest.mark.parametrize("base", [None, "cache.zarr"])
def test_a_zip_reads_as_its_folder_does(
    mutable_cache: Path, tmp_path: Path, base: str | None, images: ImageDataset
) -> None:
    store, whole = Cache.open(zipped(mutable_cache, tmp_path, base)), Cache.open(mutable_cache)
    assert verify.verify(store, images).status == "ok"
    assert store.content_id() == whole.content_id()
    with pytest.raises(UsageError, match="read only"):
        store.resize(9)


def test_a_url_is_read_and_written(memory: str, mutable_cache: Path, images: ImageDataset) -> None:
    store, whole = Cache.open(memory), Cache.open(mutable_cache)
    assert verify.verify(store, images).status == "ok"
    store.resize(5)
    stored, probes = whole.read(Part(0, 0))
    assert store.write(Part(4, 0), stored, probes, {}, {}) is True
    assert (Cache.open(memory).read(Part(4, 0))[0].code_E == stored.code_E).all()
    with pytest.raises(CacheNotFound, match="memory://lab/nothing"):
        Cache.open("memory://lab/nothing")


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="nosuch://"):
        Cache.open("nosuch://x/y")


def test_a_damaged_zip_is_named(mutable_cache: Path, tmp_path: Path) -> None:
    path = zipped(mutable_cache, tmp_path, None)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as whole:
        chunk = whole.getinfo("targets/code/c/1/0")
    data[chunk.header_offset + 30 + len(chunk.filename) + chunk.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    assert verify.verify(Cache.open(path)).status in ("damaged", "incomplete")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="cannot be opened as a zip"):
        Cache.open(path)


def test_info_has_what_a_paper_prints(digits_cache: Path, kdcache: Callable[..., object]) -> None:
    facts = json.loads(kdcache("info", digits_cache, "--json").out)
    store = Cache.open(digits_cache)
    assert facts["parts"] == {"total": 4, "done": 4}
    assert (facts["samples"], facts["views"]) == (100, 4)
    assert facts["classes"] == 10
    assert facts["format"] == "1.2"
    assert facts["fingerprint"] == store.spec.fingerprint
    assert facts["content_id"] == store.content_id() != store.spec.fingerprint
    assert facts["teacher"]["weights_sha256"] == store.spec.teacher.weights_sha256
    assert facts["kept_classes_mean"] == 10
    assert facts["tail_mass_mean"] == 0
    chunks = [p for p in digits_cache.rglob("c/*") if p.is_file()]
    chunks += [p for p in digits_cache.glob("*/*/c/**/*") if p.is_file()]
    sizes = {p: p.stat().st_size for p in chunks if "samples" not in p.parts}
    assert facts["bytes"] == sum(sizes.values())


def test_status_lists_what_is_missing_for_slurm(
    mutable_cache: Path, kdcache: Callable[..., object], digits: Path, teacher: Path
) -> None:
    for view in (0, 1, 3):
        (mutable_cache / Part(view, 0).record).unlink()
    said = kdcache("status", mutable_cache, "--missing", "--format", "slurm")
    assert (said.code, said.out) == (1, "0-1,3\n")
    assert kdcache("status", mutable_cache, "--missing").out == "0\n1\n3\n"
    again = ("cache", "digits", "--data", digits, "--teacher", teacher, "--out", mutable_cache)
    small = ("num_views=4", "views.mixup=0.5", "--device", "cpu")
    assert kdcache(*again, *small, "--parts", "3").code == 0
    assert kdcache("status", mutable_cache, "--missing", "--format", "slurm").out == "0-1\n"
    assert kdcache(*again, *small, "--parts", "0-1").code == 0
    assert kdcache("status", mutable_cache, "--missing").out == "\n"
    assert kdcache(*again, *small, "--parts", "a-b").code == 2


def test_the_verdict_has_one_word(mutable_cache: Path, kdcache: Callable[..., object]) -> None:
    (mutable_cache / Part(3, 0).record).unlink()
    said = kdcache("verify", mutable_cache, "--json")
    assert (said.code, json.loads(said.out)["verdict"]) == (1, "incomplete")
    chunk = mutable_cache / "targets/code/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    verdict = json.loads(kdcache("verify", mutable_cache, "--json").out)
    assert (verdict["verdict"], len(verdict["problems"])) == ("damaged", 2)
    lines = kdcache("verify", mutable_cache).out.splitlines()
    assert len(lines) == 3
    assert "targets/code/c/1/0" in lines[0]
    assert all("kdcache cache" in line for line in lines[:2])


def test_recompute_runs_the_teacher_again(
    mutable_cache: Path, digits: Path, teacher: Path, kdcache: Callable[..., object]
) -> None:
    ask = (
        "verify",
        mutable_cache,
        "--data",
        digits,
        "--device",
        "cpu",
        "--json",
        "--recompute",
        20,
    )
    said = kdcache(*ask, "--teacher", teacher)
    assert (said.code, json.loads(said.out)["recomputed"]) == (0, 20)
    assert "--data" in kdcache("verify", mutable_cache, "--recompute", 3).err

    store = Cache.open(
        mutable_cache
    )  # another view's targets, in good order: only the teacher can tell
    stored, _ = store.read(Part(0, 0))
    _, probes = store.read(Part(2, 0))
    (mutable_cache / Part(2, 0).record).unlink()
    store.write(Part(2, 0), stored, probes, {}, {})
    verdict = json.loads(kdcache(*ask, "--teacher", teacher).out)
    assert verdict["verdict"] == "mismatch"
    assert all("view 2 of" in p["message"] for p in verdict["problems"])


def test_another_teacher_is_detected(
    mutable_cache: Path, digits: Path, tmp_path: Path, kdcache: Callable[..., object]
) -> None:
    import timm
    from timm.models import save_for_hf

    other = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(other, str(tmp_path / "other"), safe_serialization=True)
    ask = (
        "verify",
        mutable_cache,
        "--data",
        digits,
        "--recompute",
        2,
        "--teacher",
        tmp_path / "other",
    )
    assert "has the weights sha256:" in kdcache(*ask, "--device", "cpu").out


def test_consolidated_metadata_is_ignored(mutable_cache: Path) -> None:
    import zarr

    before = Cache.open(mutable_cache).content_id()
    with warnings.catch_warnings():  # of folders without metadata, such as those of the records
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(mutable_cache))
    assert "consolidated_metadata" in (mutable_cache / "zarr.json").read_text()
    store = Cache.open(mutable_cache)
    assert verify.verify(store).status == "ok"
    assert store.content_id() == before
