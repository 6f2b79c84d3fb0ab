import hashlib
import io
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cache_tools.render import view as render
from cache_tools.spec import sample_table
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw, ops
from tests.helpers import vectors
from tests.helpers.paths import ROOT

KEYS = [f"n{i:08d}_{i * 7}" for i in range(2000)]
IDS = np.array([sample_table.sample_id(key) for key in KEYS], dtype=np.uint64)


def sizes(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, height, np.int32), np.full(count, width, np.int32)


@settings(max_examples=60)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0.01, 1.0),
    st.floats(0.2, 1.0),
    st.integers(0, 300),
)
def test_boxes_lie_within_the_picture(h: int, w: int, low: float, ratio: float, view: int) -> None:
    spec = ViewSpec(size=32, scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    box = draw.draw(spec, IDS[:64], *sizes(h, w, 64), view).box_B4
    top, left, height, width = box.T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= h).all()
    assert (left + width <= w).all()


def test_crop_follows_the_distribution_of_timm() -> None:
    spec = ViewSpec(size=224, scale=(0.2, 0.8))
    box = draw.draw(spec, IDS, *sizes(1000, 1000, len(IDS)), 0).box_B4.astype(float)
    area = box[:, 2] * box[:, 3] / 1e6
    ratio = np.log(box[:, 3] / box[:, 2])
    assert area.min() > 0.195
    assert area.max() < 0.805
    assert abs(area.mean() - 0.5) < 0.02
    assert abs(ratio.mean()) < 0.02
    assert abs(np.abs(ratio).max() - np.log(4 / 3)) < 0.01


def test_a_view_does_not_depend_on_who_is_drawn_with_it() -> None:
    spec = ViewSpec(size=32, degrees=20, translate=0.1)
    together = draw.draw(spec, IDS, *sizes(300, 400, len(IDS)), 5)
    alone = draw.draw(spec, IDS[99:100], *sizes(300, 400, 1), 5)
    assert (together.box_B4[99] == alone.box_B4[0]).all()
    assert together.flip_B[99] == alone.flip_B[0]
    assert (together.arguments_BL6[99] == alone.arguments_BL6[0]).all()


def test_adding_an_operation_shifts_no_other() -> None:
    plain = draw.draw(ViewSpec(size=32), IDS, *sizes(300, 400, len(IDS)), 5)
    rotated = draw.draw(ViewSpec(size=32, degrees=9), IDS, *sizes(300, 400, len(IDS)), 5)
    assert (plain.box_B4 == rotated.box_B4).all()
    assert (plain.flip_B == rotated.flip_B).all()
    assert plain.codes_BL.shape[1] == 0


@pytest.mark.parametrize("count", [1, 2, 7, 1024])
def test_partners_are_mutual_and_share_lambda(count: int) -> None:
    mixed = draw.mix(ViewSpec(size=32, mixup=0.3, cutmix=1.0), IDS[:count], 4)
    partner, lam, cut = mixed.partner_B, mixed.lam_B, mixed.cut_B4
    assert (cut == cut[partner]).all()
    assert (partner[partner] == np.arange(count)).all()
    assert (lam == lam[partner]).all()
    assert (partner == np.arange(count)).sum() == count % 2
    assert (lam[partner == np.arange(count)] == draw.LAMBDA_SCALE).all()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    spec = ViewSpec(size=32, mixup=alpha)
    lams = []
    for view in range(20):
        mixed = draw.mix(spec, IDS, view)
        lams.append(mixed.lam_B[mixed.partner_B > np.arange(len(IDS))] / draw.LAMBDA_SCALE)
    ours = np.sort(np.concatenate(lams))
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000))
    grid = np.linspace(0.01, 0.99, 99)
    gap = np.searchsorted(ours, grid) / len(ours) - np.searchsorted(theirs, grid) / len(theirs)
    assert np.abs(gap).max() < 0.015


def test_golden_views_of_the_format() -> None:
    """The table of FORMAT.md, section 3.5, with the ids of its keys."""
    assert len(vectors.in_format()) == 4
    assert vectors.table() == vectors.in_format()
    old = [row.split(" | ")[4] for row in vectors.table("kernels-1")]
    assert f"are erased at\n{old[2]} and {old[3]}." in vectors.FORMAT.read_text("utf-8")
    for row in vectors.in_format():
        assert int(row.split()[2], 16) == sample_table.sample_id(row.split()[1])


@pytest.mark.slow
def test_another_numpy_in_another_process_gives_the_same_views(tmp_path: Path) -> None:
    """numpy 1.26 and nothing else: the parameters need no other package."""
    root = ROOT
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy==1.26.4"], check=True)
    command = [python, root / "tests/helpers/vectors.py"]
    result = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert "numpy 1.26.4" in result.stdout
    assert result.returncode == 0, result.stdout + result.stderr


VARIED = {
    "size": 64, "scale": (0.3, 0.9), "ratio": (0.9, 1.1), "interpolation": "bicubic",
    "hflip": 0.9, "degrees": 10.0, "translate": 0.1, "auto_augment": "rand-m9",
    "op_interpolation": "bicubic", "three_augment": True, "color_jitter": (0.2, 0.0, 0.0, 0.0),
    "re_prob": 0.9, "re_mode": "rand", "re_count": 2, "fill": (0, 0, 0), "mixup": 0.5,
    "cutmix": 0.5, "mixup_prob": 0.5, "mixup_switch_prob": 0.9, "seed": 1, "center_crop": 0.8,
    "teacher_size": 48, "scaled_decode": True, "pair_views": 2,
}  # fmt: skip
BASE = ViewSpec(size=32, auto_augment="rand-m5-n1", re_prob=0.3, mixup=0.2, cutmix=1.0, degrees=3.0)
PLAIN = ViewSpec(size=32, hflip=0.0)


@pytest.mark.parametrize("name", [f.name for f in fields(ViewSpec)])
def test_every_field_changes_the_views(name: str) -> None:
    base = PLAIN if name == "center_crop" else BASE
    changed = replace(base, **{name: VARIED[name]})
    assert seen(changed) != seen(base)


def test_seed_key_and_view_number_change_the_views() -> None:
    assert seen(BASE) == seen(BASE)
    assert seen(BASE) != seen(BASE, view=1)
    assert seen(BASE) != seen(BASE, first=1)


def seen(spec: ViewSpec, view: int = 0, first: int = 0) -> str:
    """Hash of the pixels and the mixing of 64 views, at the size of the student and the teacher."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    digest = hashlib.sha256()
    for size in (spec, spec.for_teacher()):
        params = draw.draw(size, IDS[first : first + 64], *sizes(160, 200, 64), view)
        out = np.empty((size.size, size.size, 3), np.uint8)
        for row in range(64):
            render.render_views(buffer.getvalue(), "k", size, [(params, row, out)])
            digest.update(out.tobytes())
        mixed = draw.mix(size, IDS[first : first + 64], view)
        digest.update(mixed.lam_B.tobytes() + mixed.cut_B4.tobytes())
        digest.update(draw.mix(size, IDS[first : first + 64], view + 1).partner_B.tobytes())
    return digest.hexdigest()


def test_partners_stay_for_pair_views_views() -> None:
    spec = replace(BASE, pair_views=3)
    mixed = [draw.mix(spec, IDS[:200], view) for view in range(6)]
    pairs = [m.partner_B.tolist() for m in mixed]
    assert pairs[0] == pairs[1] == pairs[2] != pairs[3] == pairs[4] == pairs[5]
    assert len({m.lam_B.tobytes() for m in mixed}) == 6


def test_the_teacher_sees_the_same_view_at_its_own_size() -> None:
    spec = replace(BASE, size=64, teacher_size=192, re_prob=0.0)
    small, large = (
        draw.draw(s, IDS[:200], *sizes(300, 400, 200), 0) for s in (spec, spec.for_teacher())
    )
    assert (small.box_B4 == large.box_B4).all()
    assert (small.flip_B == large.flip_B).all()
    assert (small.codes_BL == large.codes_BL).all()
    cuts = [draw.mix(s, IDS[:200], 0).cut_B4 for s in (spec, spec.for_teacher())]
    assert np.abs(cuts[0] * 3 - cuts[1]).max() <= 6


@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_a_student_of_another_size_is_shown_the_same_views(size: int) -> None:
    """Boxes, flips, operations, partners and noise are equal; what counts pixels is scaled."""
    spec, ids = replace(BASE, size=64, degrees=10.0, translate=0.1, three_augment=True), IDS[:400]
    of = draw.draw(spec, ids, *sizes(300, 400, 400), 0)
    at = draw.draw(spec.at(size), ids, *sizes(300, 400, 400), 0)
    same = ("box_B4", "filter_B", "flip_B", "codes_BL", "noise_BE2")
    assert all(np.array_equal(getattr(of, name), getattr(at, name)) for name in same)
    geometric = np.isin(of.codes_BL, (ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC))
    own, other = of.arguments_BL6[geometric], at.arguments_BL6[geometric]
    assert len(own) > 400
    assert np.array_equal(own[:, [0, 1, 3, 4]], other[:, [0, 1, 3, 4]])
    # about the centre of the view, (size - 1)/2, a shift is the same share of it
    linear = own[:, [0, 1, 3, 4]].reshape(-1, 2, 2) / 65536.0

    def shift(values: np.ndarray, pixels: int) -> np.ndarray:
        middle = np.full(2, (pixels - 1) / 2)
        return (values[:, [2, 5]] / 65536.0 + linear @ middle - middle) / pixels

    assert np.abs(shift(own, 64) - shift(other, size)).max() < 1e-4
    assert np.array_equal(of.arguments_BL6[~geometric], at.arguments_BL6[~geometric])  # blur, too
    boxes, scaled = of.erase_BE8[..., :4] / 64, at.erase_BE8[..., :4] / size
    assert np.abs(boxes - scaled).max() <= 1.01 / min(64, size) + 1.01 / 64
    assert np.array_equal(of.erase_BE8[..., 4:], at.erase_BE8[..., 4:])
    mixed, again = draw.mix(spec, ids, 0), draw.mix(spec.at(size), ids, 0)
    assert np.array_equal(mixed.partner_B, again.partner_B)
    cut = mixed.cut_B4[:, 2] > 0
    assert np.array_equal(mixed.lam_B[~cut], again.lam_B[~cut])
    assert cut.any()
    assert np.abs(mixed.cut_B4 / 64 - again.cut_B4 / size).max() < 2.01 / min(64, size)


@pytest.mark.parametrize(
    ("height", "width", "crop", "box"),
    [
        (375, 500, 0.875, (23, 86, 328, 328)),
        (32, 32, 1.0, (0, 0, 32, 32)),
        (1, 9, 0.5, (0, 4, 1, 1)),
    ],
)
def test_centre_crop(height: int, width: int, crop: float, box: tuple[int, ...]) -> None:
    assert draw.center(height, width, crop) == box
