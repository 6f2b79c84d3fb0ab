"""Parameters of imported views: checked when they are read, and shown as they are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.outcome import Outcome
from train.data.schedule import Schedule

Command = Callable[..., Outcome]


@pytest.fixture
def imported(sizes: Sizes, tmp_path: Path, import_: Command) -> Cache:
    """A cache of ml-dr's mixed views, which a test may damage."""
    writers.ml_dr(tmp_path / "dr", sizes, views=1)
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr").code == 0
    return Cache.open(tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("column", "at", "value", "message"),
    [
        ("box_BP4", (3, 0, 0), -1, "a box .* that leaves"),
        ("box_BP4", (3, 1, 2), 5000, "a box .* that leaves"),
        ("box_BP4", (3, 1, 3), 2**31 - 1, "a box .* that leaves"),
        ("flip_BP", (3, 0), 2, "a flip"),
        ("codes_BPL", (3, 1, 1), 17, "an operation 17"),
        ("codes_BPL", (3, 1, 1), 255, "an operation 255"),
        ("arguments_BPL6", (3, 1, 1, 5), 2**31 - 1, "beyond all pictures"),
        ("erase_BPE4", (3, 0, 0), (0, 0, 33, 1), "an erased box"),
        ("erase_BPE4", (3, 0, 0), (0, 0, 1, 0), "an erased box"),
        ("cut_B4", (3,), (30, 30, 3, 3), "a cut box"),
        ("partner_B", (3,), 12, "a partner in row 12 of 12"),
        ("weight_B", (3,), 65_537, "a weight above 1"),
    ],
)
def test_parameters_that_cannot_be_are_no_views(
    column: str, at: tuple[int, ...], value: object, message: str, imported: Cache, kdcache: Command
) -> None:
    """Values are checked themselves, since a file with wrong ones may have right digests."""
    part = Part(0, 0)
    stored, probes = imported.read(part)
    params = imported.read_params(part)
    getattr(params, column)[at] = value
    (imported.path / part.record).unlink()
    assert imported.write(part, stored, probes, {}, {}, params)
    with pytest.raises(CacheDamaged, match=message):
        imported.read_params(part)
    said = kdcache("verify", imported.path, "--json")
    assert (said.code, json.loads(said.out)["verdict"]) == (1, "damaged")


def test_a_flipped_bit_in_a_box_is_noticed(imported: Cache, kdcache: Command) -> None:
    chunk = imported.path / "views/box/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    said = kdcache("verify", imported.path)
    assert said.code == 1
    assert "views/box" in said.out


def test_imported_views_need_their_parameters(imported: Cache) -> None:
    stored, probes = imported.read(Part(0, 0))
    with pytest.raises(ValueError, match="belong to imported views"):
        imported.write(Part(0, 0), stored, probes, {}, {})


def test_a_teacher_of_unknown_weights_is_not_recomputed(
    imported: Cache, folder: Path, kdcache: Command
) -> None:
    data = ("--data", folder / "photos")
    said = kdcache("verify", imported.path, *data, "--recompute", 2)
    assert (said.code, "were imported" in said.err) == (2, True)


def test_imported_views_have_one_size(
    imported: Cache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "sheet.png"
    asked = kdcache("views", imported.location, "--data", folder, "--size", 16, "--out", out)
    assert asked.code == 2
    assert "size=16 cannot be: the views of" in asked.err
    assert "were imported from" in asked.err
    with pytest.raises(UsageError, match="size=16 cannot be"):
        Schedule(imported, 1, 1, 0, size=16)
    own = imported.spec.views.size
    assert Schedule(imported, 1, 1, 0, size=own).views == imported.spec.views


def test_a_sheet_shows_the_imported_views(
    imported: Cache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    data = ("--data", folder / "photos", "--out", tmp_path / "s.png")
    said = kdcache("views", imported.path, *data, "--json")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    row = imported.table.keys.index(facts["views"][0]["key"])
    params = imported.read_params(Part(0, 0))
    assert facts["views"][0]["box"] == params.box_BP4[row, 0].tolist()
