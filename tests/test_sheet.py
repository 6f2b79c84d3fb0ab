import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Outcome
from PIL import Image

A2 = ["views.auto_augment=rand-m9-mstd0.5-inc1", "views.cutmix=1.0", "views.mixup=0.2"]


def test_a_sheet_of_a_cache_shows_what_the_teacher_saw(
    kdcache: Callable[..., Outcome], made: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    outcome = kdcache("views", made, "--data", digits, "--out", out, "--samples", 3, "--views", 4)
    assert outcome.code == 0, outcome.err
    assert "4 views of 3 samples" in outcome.out
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 5 * 160
    assert picture.std() > 30


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
