"""Augmentation settings of a cache.

Every pixel of a view follows from these, its sample id and its view number. Values are checked
here, once, so that drawing and rendering need no checks of their own.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cache_tools.config import Range, check, check_ranges
from cache_tools.spec import randaugment

Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class ViewSpec:
    """Augmentation settings.

    Names and distributions are timm's where timm has them. Operations come in the order of the
    fields: crop and resize, flip, rotation and shift, RandAugment, 3-Augment, color jitter,
    erasing, mixing. Partners are erased alike, so that erasing is, as in timm, of the mixed view.
    """

    size: Annotated[int, Range(1, 4096)]
    """Height and width of a view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area in a random resized crop, lowest and highest, within (0, 1]."""
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width by height of the crop, lowest and highest, within 0.01..100."""
    center_crop: Share = 0.0
    """Share of the shorter side of a centre crop, in place of everything random; 0 = off."""
    interpolation: Literal["area", "box", "bilinear", "bicubic", "random"] = "area"
    """Resampling of the crop: the mean over an area by OpenCV; box, the same mean in integers at
    twice the speed (both are linear along an axis that grows); Pillow's as timm uses it, where
    random draws one of bilinear and bicubic."""
    scaled_decode: bool = False
    """Decode at 1/2, 1/4 or 1/8 where the crop stays as large as the view: faster for large
    images, and other pixels."""
    teacher_size: Annotated[int, Range(0, 4096)] = 0
    """Size of the same views for the teacher, rendered from the original; 0 = `size`."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    degrees: Annotated[float, Range(0, 180)] = 0.0
    """Rotation is uniform in [-degrees, degrees]; 0 = off."""
    translate: Share = 0.0
    """Shift along each axis is uniform in ±translate·size; 0 = off."""
    auto_augment: str = ""
    """RandAugment in timm's grammar, such as "rand-m7-mstd0.5-inc1"; "" = off."""
    op_interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "random"
    """Resampling of geometric operations."""
    three_augment: bool = False
    """3-Augment (DeiT III): one of grayscale, solarize and Gaussian blur."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of brightness, contrast, saturation (0..1) and hue (0..0.5), as torchvision's
    ColorJitter."""
    re_prob: Share = 0.0
    """Probability of random erasing (Zhong et al., AAAI 2020)."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Erase to `fill`, to one random color, or to random pixels."""
    re_count: Annotated[int, Range(1, 8)] = 1
    """Largest number of erased boxes."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """Color (RGB) outside of the image in geometric operations, and the mean of erasing."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup (Zhang et al., ICLR 2018), 0.01..100; 0 = off."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of cutmix (Yun et al., ICCV 2019), 0.01..100; 0 = off."""
    mixup_prob: Share = 1.0
    """Probability that a pair is mixed at all."""
    mixup_switch_prob: Share = 0.5
    """Probability of cutmix when both are on."""
    pair_views: Annotated[int, Range(1, 10_000)] = 1
    """Consecutive views in which samples keep their partners. With as many as a student's repeated
    augmentation shows, its batches decode each image once."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of every draw."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check(0 < self.scale[0] <= self.scale[1] <= 1, "scale must rise within (0, 1]")
        check(0.01 <= self.ratio[0] <= self.ratio[1] <= 100, "ratio must rise within 0.01..100")
        check(all(0 <= j <= 1 for j in self.color_jitter), "color_jitter must be in 0..1")
        check(self.color_jitter[3] <= 0.5, "the hue of color_jitter must be in 0..0.5")
        check(all(0 <= c <= 255 for c in self.fill), "fill must be three values in 0..255")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            check(alpha == 0 or 0.01 <= alpha <= 100, f"{name} must be 0 or in 0.01..100")
        if self.auto_augment:
            randaugment.parse(self.auto_augment)
        check(
            not (self.center_crop and self.random), "center_crop requires hflip=0 and all else off"
        )

    @property
    def affine(self) -> bool:
        """True if views are rotated or shifted."""
        return self.degrees > 0 or self.translate > 0

    @property
    def mixes(self) -> bool:
        """True if views are mixed with partners."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def random(self) -> bool:
        """True if anything but the crop is drawn."""
        color = bool(self.auto_augment) or self.three_augment or any(self.color_jitter)
        return self.hflip > 0 or self.affine or color or self.re_prob > 0 or self.mixes

    def at(self, size: int) -> "ViewSpec":
        """Return the same views, rendered from the original at another size; 0 = `size`."""
        return replace(self, size=size or self.size, teacher_size=0)

    def for_teacher(self) -> "ViewSpec":
        """Return the same views at the teacher's size."""
        return self.at(self.teacher_size)


UNKNOWN_VIEWS = ViewSpec(size=1, hflip=0.0, center_crop=1.0)
"""Placeholder for the views of imported logits, which cannot be drawn again."""
