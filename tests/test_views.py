import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools import samples, views
from cache_tools.spec import ViewSpec

KEYS = [f"n{i:08d}_{i * 7}" for i in range(2000)]
IDS = np.array([samples.sample_id(key) for key in KEYS], dtype=np.uint64)


def sizes(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, height, np.int32), np.full(count, width, np.int32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0.01, 1.0),
    st.floats(0.2, 1.0),
    st.integers(0, 300),
)
def test_boxes_lie_within_the_picture(h: int, w: int, low: float, ratio: float, view: int) -> None:
    spec = ViewSpec(size=32, scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    box = views.draw(spec, IDS[:64], *sizes(h, w, 64), view).box_B4
    top, left, height, width = box.T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= h).all()
    assert (left + width <= w).all()


def test_crop_follows_the_distribution_of_timm() -> None:
    spec = ViewSpec(size=224, scale=(0.2, 0.8))
    box = views.draw(spec, IDS, *sizes(1000, 1000, len(IDS)), 0).box_B4.astype(float)
    area = box[:, 2] * box[:, 3] / 1e6
    ratio = np.log(box[:, 3] / box[:, 2])
    assert area.min() > 0.195
    assert area.max() < 0.805
    assert abs(area.mean() - 0.5) < 0.02
    assert abs(ratio.mean()) < 0.02
    assert abs(np.abs(ratio).max() - np.log(4 / 3)) < 0.01


def test_a_view_does_not_depend_on_who_is_drawn_with_it() -> None:
    spec = ViewSpec(size=32, degrees=20, translate=0.1)
    together = views.draw(spec, IDS, *sizes(300, 400, len(IDS)), 5)
    alone = views.draw(spec, IDS[99:100], *sizes(300, 400, 1), 5)
    assert (together.box_B4[99] == alone.box_B4[0]).all()
    assert together.flip_B[99] == alone.flip_B[0]
    assert (together.affine_B6[99] == alone.affine_B6[0]).all()


def test_adding_an_operation_shifts_no_other() -> None:
    plain = views.draw(ViewSpec(size=32), IDS, *sizes(300, 400, len(IDS)), 5)
    rotated = views.draw(ViewSpec(size=32, degrees=9), IDS, *sizes(300, 400, len(IDS)), 5)
    assert (plain.box_B4 == rotated.box_B4).all()
    assert (plain.flip_B == rotated.flip_B).all()
    assert plain.affine_B6 is None


@pytest.mark.parametrize("count", [1, 2, 7, 1024])
def test_partners_are_mutual_and_share_lambda(count: int) -> None:
    partner, lam = views.mix(ViewSpec(size=32, mixup=0.3), IDS[:count], 4)
    assert (partner[partner] == np.arange(count)).all()
    assert (lam == lam[partner]).all()
    assert (partner == np.arange(count)).sum() == count % 2
    assert (lam[partner == np.arange(count)] == views.LAM_ONE).all()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    spec = ViewSpec(size=32, mixup=alpha)
    lams = []
    for view in range(20):
        partner, lam = views.mix(spec, IDS, view)
        lams.append(lam[partner > np.arange(len(IDS))] / views.LAM_ONE)
    ours = np.sort(np.concatenate(lams))
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000))
    grid = np.linspace(0.01, 0.99, 99)
    gap = np.searchsorted(ours, grid) / len(ours) - np.searchsorted(theirs, grid) / len(theirs)
    assert np.abs(gap).max() < 0.015


def test_golden_views_of_the_format() -> None:
    """The table of FORMAT.md, section 3.5."""
    spec = ViewSpec(size=224, degrees=15.0, translate=0.1, mixup=0.2, seed=42)
    ids = np.sort(np.array([samples.sample_id(f"n01440764_{i}") for i in range(4)], np.uint64))
    drawn = views.draw(spec, ids, *sizes(375, 500, 4), 3)
    partner, lam = views.mix(spec, ids, 3)
    assert [f"{int(i):016x}" for i in ids] == GOLDEN["id"]
    assert drawn.box_B4.tolist() == GOLDEN["box"]
    assert drawn.flip_B.tolist() == GOLDEN["flip"]
    assert drawn.affine_B6.tolist() == GOLDEN["affine"]
    assert (partner.tolist(), lam.tolist()) == (GOLDEN["partner"], GOLDEN["lam"])


GOLDEN: dict[str, list] = {
    "id": ["972265a835d0cbcf", "ca73446a6aca4d45", "d0659b9b5cad9577", "e554f1b367bababa"],
    "box": [[40, 128, 311, 304], [220, 337, 138, 136], [6, 122, 282, 255], [118, 127, 256, 198]],
    "flip": [True, True, False, True],
    "affine": [
        [65261, 5993, -973350, -5993, 65261, -252636],
        [65379, 4530, 344917, -4530, 65379, 440269],
        [63644, 15632, -437788, -15632, 63644, 683254],
        [64139, 13461, -2406136, -13461, 64139, 283675],
    ],
    "partner": [3, 2, 1, 0],
    "lam": [32050, 4, 4, 32050],
}


@pytest.mark.parametrize(
    ("height", "width", "crop", "box"),
    [
        (375, 500, 0.875, (23, 86, 328, 328)),
        (32, 32, 1.0, (0, 0, 32, 32)),
        (1, 9, 0.5, (0, 4, 1, 1)),
    ],
)
def test_centre_crop(height: int, width: int, crop: float, box: tuple[int, ...]) -> None:
    assert views.center(height, width, crop) == box
