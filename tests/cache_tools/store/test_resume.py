"""A rerun mends: every damage of every file, and a command that runs again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from cache_tools.combine import select
from cache_tools.errors import CacheDamaged, CacheMismatch, KdcacheError, UsageError
from cache_tools.share import pull
from cache_tools.spec.sample_table import SampleTable
from cache_tools.storage.open import open_storage
from cache_tools.store import resume
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import lab

Damage = Callable[[Path], object]
NAMES = lab.keys(40)
DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "flip": lambda data, _: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4])
    + data[len(data) // 2 + 1 :],
    "truncate": lambda data, _: data[: len(data) // 3],
    "empty": lambda *_: b"",
    "delete": lambda *_: None,
    "another's": lambda _, other: other,
}  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of other samples, whose files have the same names."""
    folder = tmp_path_factory.mktemp("made")
    other = [f"other-{i}" for i in range(40)]
    return (
        lab.build(folder / "a.zarr", NAMES, range(1)).path,
        lab.build(folder / "b.zarr", other, range(1)).path,
    )


def rerun(out: Path) -> Cache:
    """As every command does that makes a cache."""
    known = lab.table(NAMES)
    store = resume.open_or_create(out, lab.spec(known), lambda: known, 1)
    for part in store.parts():
        if store.check_part(part) is not None:
            lab.write(store, part)
    return store


@pytest.mark.parametrize(
    "turn", [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 5))]
)
def test_every_damage_of_every_file_is_mended(
    made: tuple[Path, Path], tmp_path: Path, turn: int
) -> None:
    """One kind of damage of each file in each turn: several files at once, then one by one."""
    out = Path(shutil.copytree(made[0], tmp_path / "c.zarr"))
    whole, others, kinds = files(made[0]), files(made[1]), list(DAMAGES)
    damages = [(n, kinds[(i + turn) % len(kinds)]) for i, n in enumerate(sorted(whole))]
    step = 1 if turn else 7
    for some in (damages[begin : begin + step] for begin in range(0, len(damages), step)):
        for name, kind in some:
            damaged = DAMAGES[kind](whole[name], others[name])
            (out / name).unlink()
            if damaged is not None:
                (out / name).write_bytes(damaged)
        if ("zarr.json", "another's") in some:
            with pytest.raises(UsageError, match="is another cache"):
                rerun(out)
            (out / "zarr.json").write_bytes(whole["zarr.json"])
        rerun(out)
        assert files(out) == whole, some


def test_a_pull_mends_too_and_a_whole_cache_stays_untouched(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = Cache.open(made[0]), tmp_path / "c.zarr"
    pull.run(source, out, select.plan(source))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    pull.run(source, out, select.plan(source))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    for name in ("zarr.json", "samples/key/zarr.json", "samples/id/c/0", "targets/zarr.json"):
        (out / name).write_bytes(b"")
    pull.run(source, out, select.plan(source))
    assert files(out) == files(made[0])


def test_consolidated_metadata_stays_unless_it_misleads(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "c.zarr"))
    with pytest.warns():
        zarr.consolidate_metadata(out)  # type: ignore[arg-type]
    consolidated = files(out)
    rerun(out)
    assert files(out) == consolidated
    group = json.loads(consolidated["zarr.json"])
    group["consolidated_metadata"]["metadata"]["targets/code"]["fill_value"] = 3
    (out / "zarr.json").write_text(json.dumps(group))
    rerun(out)
    assert files(out) == files(made[0])


def test_what_cannot_be_mended_is_refused_by_name(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "c.zarr"))
    (out / "samples/id/c/0").unlink()
    other = lab.table([f"other-{i}" for i in range(40)])
    damaged = files(out)
    with pytest.raises(CacheDamaged, match=r"samples/id/c/0.*samples that this command was given"):
        resume.open_or_create(out, lab.spec(lab.table(NAMES)), lambda: other, 1)
    (out / "zarr.json").write_bytes(b"{}")
    with pytest.raises(CacheDamaged, match=r"zarr\.json is damaged.*of another cache"):
        resume.open_or_create(out, lab.spec(other), lambda: other, 1)
    (out / "zarr.json").write_bytes(damaged["zarr.json"])
    assert files(out) == damaged


def empty(out: Path, known: SampleTable) -> Cache:
    return Cache.create(out, lab.spec(known), known, 3)


def test_an_empty_cache_gives_way_to_another_one(tmp_path: Path) -> None:
    """Also one whose removal was interrupted; a file that is not ours stops it."""
    first, out = lab.table(lab.keys(8)), tmp_path / "c.zarr"
    running = empty(out, first)
    rerun(out)
    assert Cache.open(out).table.keys == lab.table(NAMES).keys
    with pytest.raises(CacheMismatch, match="another process has made another cache"):
        lab.write(running, Part(0, 0))
    shutil.rmtree(out)
    empty(out, first)
    (out / "zarr.json").unlink()
    (out / "targets/square").mkdir(exist_ok=True)
    (out / "targets/square/zarr.json").write_text("left")
    rerun(out)
    assert resume.discard_empty(open_storage(out)) is False
    shutil.rmtree(out)
    empty(out, first)
    (out / "photo.jpg").touch()
    with pytest.raises(KdcacheError):
        rerun(out)
    assert (out / "photo.jpg").exists()


def test_a_process_restores_the_root_that_another_one_removed(tmp_path: Path) -> None:
    known, out = lab.table(NAMES), tmp_path / "c.zarr"
    running = Cache.create(out, lab.spec(known), known, 1)
    running.set_data_path("images")
    assert resume.discard_empty(open_storage(out))
    assert list(tmp_path.iterdir()) == []
    for part in running.parts():
        lab.write(running, part)
    assert list(Cache.open(out).metadata_faults()) == []
    assert len(Cache.open(out).committed()) == 2
