import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cache_tools.data import match
from cache_tools.data.open import open_images
from cache_tools.report import contact_sheet
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers.outcome import Outcome

A2 = ["views.auto_augment=rand-m9-mstd0.5-inc1", "views.cutmix=1.0", "views.mixup=0.2"]


def test_a_sheet_of_a_cache_shows_what_the_teacher_saw(
    kdcache: Callable[..., Outcome], digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    outcome = kdcache(
        "views", digits_cache, "--data", digits, "--out", out, "--samples", 3, "--views", 4
    )
    assert outcome.code == 0, outcome.err
    assert "4 views of 3 samples" in outcome.out
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 5 * 160
    assert picture.std() > 30


def test_a_sheet_of_a_cache_refuses_an_image_that_changed(
    kdcache: Callable[..., Outcome], digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    copy, store = tmp_path / "digits", Cache.open(digits_cache)
    shutil.copytree(digits, copy)
    images = match.match(store.table, store.spec.dataset, open_images(str(copy), "train"))
    shard, at = images.paths[images.file_N[0]], images.offset_N[0] + images.length_N[0] - 1
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)
    outcome = kdcache("views", digits_cache, "--data", copy, "--out", tmp_path / "sheet.png")
    assert outcome.code == 1
    assert f"image {store.table.keys[0]!r} has changed" in outcome.err
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_of_a_damaged_or_unfinished_cache_names_the_part(
    kdcache: Callable[..., Outcome], mutable_cache: Path, digits: Path, tmp_path: Path
) -> None:
    args = ("views", mutable_cache, "--data", digits, "--out", tmp_path / "sheet.png")
    record = mutable_cache / Part(1, 0).record
    whole = record.read_bytes()
    record.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    damaged = kdcache(*args)
    assert (damaged.code, Part(1, 0).record in damaged.err) == (1, True)
    assert not (tmp_path / "sheet.png").exists()
    record.unlink()
    unfinished = kdcache(*args)
    assert (unfinished.code, "view 1, block 0" in unfinished.err) == (0, True)
    (mutable_cache / "zarr.json").unlink()
    assert f"there is no cache at {mutable_cache}" in " ".join(kdcache(*args).err.split())


def test_a_recipe_is_seen_before_it_is_paid_for(
    kdcache: Callable[..., Outcome], digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    outcome = kdcache("views", "digits", *A2, "--data", digits, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    shown = json.loads(outcome.out)["views"]
    assert len(shown) == 6 * 5
    assert out.exists()
    assert {v["view"] for v in shown} == set(range(5))
    assert any(o["operation"] != "affine" for v in shown for o in v["operations"])
    assert any(v["mixing"]["box"][2] for v in shown)
    again = kdcache("views", "digits", *A2, "--data", digits, "--json")
    assert json.loads(again.out)["views"] == shown


def test_a_sheet_without_images_or_place_is_explained(kdcache: Callable[..., Outcome]) -> None:
    assert "Pass --data" in kdcache("views", "digits", "--json").err
    assert "Pass --out" in kdcache("views", "digits", "--data", "x").err


@pytest.mark.parametrize("command", ["views", "info", "verify"])
def test_a_link_that_leads_nowhere_is_named(
    command: str, kdcache: Callable[..., Outcome], tmp_path: Path
) -> None:
    link = tmp_path / "cache.zarr"
    link.symlink_to(tmp_path / "gone")
    outcome = kdcache(command, link, "--json")
    assert (outcome.code, "Traceback" in outcome.err) == (2, False)
    said = " ".join(outcome.err.split())
    assert f"{link} is a link to {tmp_path / 'gone'}, where nothing is. Correct the link" in said
    assert "Did you mean 'digits'" in kdcache("views", "digts", "--json").err


@pytest.mark.parametrize(
    ("lam", "shown"),
    [
        (0, "0.0 %"),
        (1, "0.1 %"),
        (200, "0.3 %"),
        (20_316, "31 %"),
        (65_405, "99.8 %"),
        (65_535, "99.9 %"),
    ],
)
def test_the_share_of_the_own_picture_in_percent(lam: int, shown: str) -> None:
    assert contact_sheet.own_share(lam) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("83 %  tench (n01440764)", "83 %  tench (n01440764)"),
        ("83 %  Rhodesian ridgeback (n02087394)", "83 %  Rhodesian ridgeback"),
    ],
)
def test_a_synset_is_left_out_where_its_name_would_be_cut(
    name: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    pen = ImageDraw.Draw(Image.new("RGB", (400, 40)))
    monkeypatch.setattr(pen, "text", lambda at, text, **_: drawn.append(text))
    contact_sheet._text(pen, (0, 0), name, (0, 0, 0))
    assert drawn == [shown]


def test_a_caption_of_a_mixed_view_names_the_share_of_the_own_picture(
    kdcache: Callable[..., Outcome],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda pen, at, shown, *a, **k: (drawn.append(shown), text(pen, at, shown, *a, **k))[1],
    )
    out = tmp_path / "sheet.png"
    options = ("--data", digits, "--out", out, "--json")
    shown = json.loads(kdcache("views", "digits", *A2, *options).out)["views"]
    captions = [caption for caption in drawn if caption.startswith("view ")]
    assert len(captions) == len(shown)
    for view, caption in zip(shown, captions, strict=True):
        mixing = view["mixing"]
        own = re.fullmatch(r"view \d+(?:   (?:mixup|cutmix), own ([\d.]+) %)?", caption)
        assert own is not None, caption
        assert float(own[1] or 100) == pytest.approx(100 * mixing["lam"] if mixing else 100, abs=1)
