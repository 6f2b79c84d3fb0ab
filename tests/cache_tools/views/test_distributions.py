"""Each distribution of a view against timm's own transform: two samples, fixed seeds."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from cache_tools.importers import torchvision_ops
from cache_tools.spec import sample_table
from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw as views
from cache_tools.views import ops

COUNT = 4000
IDS = np.array([sample_table.sample_id(f"n{i:08d}") for i in range(COUNT)], dtype=np.uint64)
LIMIT = 1.95 * np.sqrt(2 / COUNT)  # two-sample Kolmogorov-Smirnov at p = 0.001


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from numpy's global generator
    torch.manual_seed(0)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(np.asarray(ours, float)), np.sort(np.asarray(theirs, float))
    grid = np.concatenate([a, b])
    counts = [np.searchsorted(x, grid, side="right") / len(x) for x in (a, b)]
    return float(np.abs(counts[0] - counts[1]).max())


def draw(spec: ViewSpec, height: int = 375, width: int = 500) -> views.ViewParams:
    sides = np.full(COUNT, height, np.int32), np.full(COUNT, width, np.int32)
    return views.draw(spec, IDS, *sides, 0)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (1000, 120), (60, 900)])
def test_random_resized_crop(height: int, width: int) -> None:
    picture = Image.new("RGB", (width, height))
    crop = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([crop(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(COUNT)])
    ours = draw(ViewSpec(size=224), height, width).box_B4
    for column in range(4):
        assert distance(ours[:, column], theirs[:, column]) < LIMIT


class Recorded:
    """timm's RandAugment with the image operations replaced by a note of what they were given."""

    def __init__(self, config: str) -> None:
        self.transform = auto_augment.rand_augment_transform(config, {"img_mean": (0, 0, 0)})
        self.log: list[tuple[str, float]] = []
        for op in self.transform.ops:
            name = op.name
            op.aug_fn = lambda image, *a, name=name, **_: self._note(image, name, a)

    def _note(self, image: Image.Image, name: str, arguments: tuple[float, ...]) -> Image.Image:
        self.log.append((name.removesuffix("Increasing"), arguments[0] if arguments else 0.0))
        return image

    def run(self) -> "Recorded":
        image = Image.new("RGB", (8, 8))
        for _ in range(COUNT):
            self.transform(image)
        return self


TIMM = {
    ops.AUTOCONTRAST: "AutoContrast", ops.EQUALIZE: "Equalize", ops.INVERT: "Invert",
    ops.POSTERIZE: "Posterize", ops.SOLARIZE: "Solarize", ops.SOLARIZE_ADD: "SolarizeAdd",
    ops.COLOR: "Color", ops.CONTRAST: "Contrast", ops.BRIGHTNESS: "Brightness",
    ops.SHARPNESS: "Sharpness", ops.BLUR: "GaussianBlur",
}  # fmt: skip
FACTORS = {"Color", "Contrast", "Brightness", "Sharpness", "GaussianBlur"}


def ours_as_timm(config: str) -> list[tuple[str, float]]:
    drawn = draw(ViewSpec(size=224, auto_augment=config))
    log = []
    for code, arguments in zip(
        drawn.codes_BL.reshape(-1).tolist(),
        drawn.arguments_BL6.reshape(-1, 6).tolist(),
        strict=True,
    ):
        a, b, c, d, _, f = (v / 65536 for v in arguments)
        if code in (ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC):
            if a != 1:
                log.append(("Rotate", float(np.degrees(np.arctan2(d, a)))))
            elif b or d:
                log.append(("ShearX", b) if b else ("ShearY", d))
            else:
                log.append(("TranslateXRel", c / 224) if c else ("TranslateYRel", f / 224))
        elif code:
            name = TIMM[code]
            log.append((name, a if name in FACTORS else float(arguments[0])))
    return log


@pytest.mark.parametrize(
    "config",
    [
        "rand-m7-mstd0.5",
        "rand-m9-mstd0.5-inc1",
        "rand-m9-n3-mstd1.0-p0.3",
        "rand-m15-mmax20-mstd2-inc1",
        "rand-m6-mstd101-inc1",
        "rand-m9-n2-mstd0.5-tweights",
        "rand-m9-n1-mstd0.5-inc1-t3a",
    ],
)
def test_randaugment_reads_timms_grammar(config: str) -> None:
    theirs, ours = Recorded(config).run().log, ours_as_timm(config)
    if config.endswith("t3a"):  # there, Desaturate is what is Color here
        theirs = [("Color", 1 - v) if n == "Desaturate" else (n, v) for n, v in theirs]
    names = {name for name, _ in theirs}
    assert names == {name for name, _ in ours}
    assert abs(len(ours) - len(theirs)) < 4 * np.sqrt(len(theirs))
    for name in names:
        a, b = ([v for n, v in log if n == name] for log in (ours, theirs))
        assert abs(len(a) - len(b)) < 5 * np.sqrt(len(b)) + 5, name
        # the fixed grid of 1/65536 splits what timm has as one value
        if len(b) > 30:
            grid = [np.round(np.array(x), 3) for x in (a, b)]
            assert distance(*grid) < 2.2 * np.sqrt(1 / len(a) + 1 / len(b)), name


def test_geometric_interpolation_is_drawn_or_fixed() -> None:
    share = {}
    for kind in ("bilinear", "bicubic", "random"):
        codes = draw(ViewSpec(size=64, auto_augment="rand-m9", op_interpolation=kind)).codes_BL
        bilinear, bicubic = (
            (codes == ops.AFFINE_BILINEAR).sum(),
            (codes == ops.AFFINE_BICUBIC).sum(),
        )
        share[kind] = bicubic / (bilinear + bicubic)
    assert share["bilinear"] == 0
    assert share["bicubic"] == 1
    assert share["random"] == pytest.approx(0.5, abs=0.05)


def test_colour_jitter() -> None:
    drawn = draw(ViewSpec(size=64, color_jitter=(0.4, 0.3, 0.2, 0.1)))
    jitter = ColorJitter(0.4, 0.3, 0.2, 0.1)
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(COUNT)
    ]
    for column, code in enumerate((ops.BRIGHTNESS, ops.CONTRAST, ops.COLOR, ops.HUE)):
        ours = drawn.arguments_BL6[..., 0][drawn.codes_BL == code]
        assert len(ours) == COUNT
        values = np.array([t[column + 1] for t in theirs])
        if code == ops.HUE:
            assert distance((ours + 128) % 256, np.trunc(values * 255) + 128) < LIMIT
        else:
            assert distance(ours / 65536, values) < LIMIT
    first = np.bincount(drawn.codes_BL[:, 0], minlength=16)
    assert all(abs(first[c] - COUNT / 4) < 150 for c in drawn.codes_BL[0])


def test_three_augment_takes_one_of_three() -> None:
    drawn = draw(ViewSpec(size=64, three_augment=True))
    counts = np.bincount(drawn.codes_BL[:, 0], minlength=16)
    for code in (ops.GRAYSCALE, ops.SOLARIZE, ops.BLUR):
        assert abs(counts[code] - COUNT / 3) < 150
    radius = drawn.arguments_BL6[drawn.codes_BL == ops.BLUR][:, 0] / 65536
    assert distance(radius, np.random.default_rng(0).uniform(0.1, 2.0, 2000)) < 0.06


@pytest.mark.parametrize("count", [1, 3])
def test_random_erasing(count: int) -> None:
    eraser = RandomErasing(0.25, mode="const", min_count=1, max_count=count, device="cpu")
    boxes, per_image = [], []
    for _ in range(COUNT):
        picture = torch.ones(1, 112, 112)
        eraser(picture)
        rows, columns = (picture[0] == 0).any(1), (picture[0] == 0).any(0)
        per_image.append(int(rows.any()))
        if rows.any() and count == 1:
            boxes.append(
                (
                    int(rows.nonzero()[0]),
                    int(columns.nonzero()[0]),
                    int(rows.sum()),
                    int(columns.sum()),
                )
            )
    drawn = draw(ViewSpec(size=112, re_prob=0.25, re_count=count, re_mode="const"))
    there = drawn.erase_BE8[:, :, 2] > 0
    assert abs(there.any(1).mean() - np.mean(per_image)) < 0.03
    if count == 1:
        ours = drawn.erase_BE8[there][:, :4]
        for column in range(4):
            limit = 2.0 * np.sqrt(1 / len(ours) + 1 / len(boxes))
            assert distance(ours[:, column], np.array(boxes)[:, column]) < limit
    else:
        assert there.sum(1)[there.any(1)].mean() == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "prob"),
    [(0.2, 0.0, 1.0), (0.0, 1.0, 1.0), (0.8, 1.0, 1.0), (0.1, 1.0, 0.5)],
)
def test_mixup_and_cutmix(mixup: float, cutmix: float, prob: float) -> None:
    size = 224
    spec = ViewSpec(size=size, mixup=mixup, cutmix=cutmix, mixup_prob=prob)
    ours = [views.mix(spec, IDS[b : b + 1000], v) for v in range(4) for b in range(0, COUNT, 1000)]
    lam = np.concatenate([m.lam_B for m in ours]) / 65536
    cut = np.concatenate([m.cut_B4 for m in ours])
    timm = Mixup(mixup, cutmix, prob=prob, switch_prob=0.5, mode="elem")
    their_lam, use_cut = timm._params_per_elem(8000)
    boxes = np.zeros((8000, 4), int)
    for i in np.flatnonzero(use_cut & (their_lam != 1)):
        (yl, yh, xl, xh), their_lam[i] = cutmix_bbox_and_lam((3, size, size), their_lam[i])
        boxes[i] = yl, xl, yh - yl, xh - xl
    limit = 1.95 * np.sqrt(1 / 8000 + 1 / 8000)  # partners share their λ: half as many are free
    assert distance(np.round(lam, 4), np.round(their_lam, 4)) < limit
    assert abs((cut[:, 2] > 0).mean() - (boxes[:, 2] > 0).mean()) < 0.03
    if cutmix:
        is_cut = cut[:, 2] > 0
        their_box = boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)]
        for column in range(4):
            spread = 2.2 * np.sqrt(2 / is_cut.sum() + 1 / len(their_box))
            assert distance(cut[is_cut][:, column], their_box[:, column]) < spread
        area = cut[is_cut][:, 2] * cut[is_cut][:, 3] / size**2
        assert np.allclose(lam[is_cut], 1 - area, atol=1 / 65536)


def test_a_million_parameter_sets_take_seconds_not_minutes() -> None:
    """A whole block in one call; how fast is for the benchmarks."""
    spec = ViewSpec(size=224, auto_augment="rand-m7-mstd0.5", re_prob=0.25, mixup=0.1, cutmix=1.0)
    ids = np.arange(65_536, dtype=np.uint64)
    side = np.full(len(ids), 400, np.int32)
    assert len(views.draw(spec, ids, side, side, 0)) == 65_536


@pytest.mark.parametrize("magnitude", [0, 9, 18, 30])
def test_the_operations_of_torchvision(magnitude: int) -> None:
    """Every operation and sign equally often, with torchvision's arguments, nearest pixels."""
    from torchvision.transforms import RandAugment

    space = RandAugment(magnitude=magnitude)._augmentation_space(31, (224, 224))
    expected: dict[tuple[int, ...], float] = {}
    for number, (values, signed) in enumerate(space.values()):
        value = float(values[magnitude]) if values.ndim else 0.0
        for sign in (1, -1) if signed else (1,):
            code, arguments = torchvision_ops.operation(number, sign * value, 224)
            key = (code, *arguments)
            expected[key] = expected.get(key, 0) + 1 / (14 * (1 + signed))
    text = f"rand-m{magnitude / 3:.10g}-n2-p1-ttorchvision"
    drawn = draw(ViewSpec(size=224, auto_augment=text, op_interpolation="nearest"))
    found = np.concatenate([drawn.codes_BL[..., None], drawn.arguments_BL6], axis=2).reshape(-1, 7)
    close = np.array([0, *[2] * 6])  # of matrices: 1/65536
    matches = [(abs(found - np.array(row)) <= close).all(axis=1) for row in expected]
    assert np.any(matches, axis=0).all()
    for there, (row, share) in zip(matches, expected.items(), strict=True):
        assert there.mean() == pytest.approx(share, rel=0.2), row
