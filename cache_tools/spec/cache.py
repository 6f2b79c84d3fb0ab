"""What a cache is of: data set, teacher, views and targets, and the fingerprint of all four.

The `CacheSpec` stands in the manifest as canonical JSON; its SHA-256 is the cache's fingerprint,
the name that a paper can print and a student's `result.json` repeats. The number of views is not
part of it: a cache that grows by ten views is still the same cache, with more parts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cache_tools import config
from cache_tools.config import check
from cache_tools.errors import CacheDamaged, RecipeError
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.imported import ImportedSpec
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.views import randaugment

FORMAT_VERSION = "1.1"
"""The newest that is known here; a cache says the oldest that has what it uses."""
MAX_KEPT = 65_534  # counts are u2, and 65535 is no legal value
MAX_SAMPLES = 2**32
MAX_BLOCKS = 2**20
Renderer = Literal["kernels-1", "none"]
KeyKind = Literal["stem", "path"]


@dataclass(frozen=True)
class ViewSpec:
    """The augmentation: with a sample id and a view number it says every pixel of a view.

    Names and distributions are timm's where timm has them. Operations come in the order of the
    fields: crop and resize, flip, rotation and shift, RandAugment, 3-Augment, colour jitter,
    erasing, mixing.
    """

    size: int
    """Height and width of a view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a random resized crop takes, lowest and highest."""
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width by height of the crop, lowest and highest."""
    center_crop: float = 0.0
    """Share of the shorter side of a centre crop, in place of everything random; 0 = off."""
    interpolation: Literal["area", "box", "bilinear", "bicubic", "random"] = "area"
    """Resampling of the crop: OpenCV's INTER_AREA; box, the same mean in integers at twice the
    speed; Pillow's as timm uses it, where random draws one of bilinear and bicubic."""
    scaled_decode: bool = False
    """Decode at 1/2, 1/4 or 1/8 where the crop stays as large as the view: faster for large
    pictures, and other pixels."""
    teacher_size: int = 0
    """Size at which the teacher sees the same views, rendered from the original; 0 = `size`."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    degrees: float = 0.0
    """Rotation is uniform in [-degrees, degrees]; 0 = off."""
    translate: float = 0.0
    """Shift along each axis is uniform in ±translate·size; 0 = off."""
    auto_augment: str = ""
    """RandAugment in timm's grammar, such as "rand-m7-mstd0.5-inc1"; "" = off."""
    op_interpolation: Literal["bilinear", "bicubic", "random"] = "random"
    """Resampling of geometric operations."""
    three_augment: bool = False
    """3-Augment (DeiT III): one of grayscale, solarize and Gaussian blur."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of brightness, contrast, saturation and hue (torchvision's ColorJitter)."""
    re_prob: float = 0.0
    """Probability of random erasing (Zhong et al., AAAI 2020)."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Erase to `fill`, to one random colour, or to random pixels."""
    re_count: int = 1
    """Largest number of erased boxes."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """Colour (RGB) that geometric operations bring in and erasing centres on."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup (Zhang et al., ICLR 2018); 0 = off."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of cutmix (Yun et al., ICCV 2019); 0 = off."""
    mixup_prob: float = 1.0
    """Probability that a pair is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix when both are on."""
    pair_views: int = 1
    """Consecutive views in which samples keep their partners. As many as a student's repeated
    augmentation shows: its batches then decode each picture once."""
    seed: int = 0
    """Seed of every draw, 0 ≤ seed < 2^63."""

    def __post_init__(self) -> None:
        check(1 <= self.size <= 4096, "size must be in 1..4096 pixels")
        check(0 <= self.teacher_size <= 4096, "teacher_size must be in 0..4096 pixels")
        check(0 < self.scale[0] <= self.scale[1] <= 1, "scale must rise within (0, 1]")
        check(0.01 <= self.ratio[0] <= self.ratio[1] <= 100, "ratio must rise within 0.01..100")
        for name in ("hflip", "re_prob", "mixup_prob", "mixup_switch_prob", "center_crop"):
            check(0 <= getattr(self, name) <= 1, f"{name} must be in 0..1")
        check(0 <= self.degrees <= 180, "degrees must be in 0..180")
        check(0 <= self.translate <= 1, "translate must be in 0..1")
        check(all(0 <= j <= 1 for j in self.color_jitter), "color_jitter must be in 0..1")
        check(self.color_jitter[3] <= 0.5, "the hue of color_jitter must be in 0..0.5")
        check(1 <= self.re_count <= 8, "re_count must be in 1..8")
        check(all(0 <= c <= 255 for c in self.fill), "fill must be three values in 0..255")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            check(alpha == 0 or 0.01 <= alpha <= 100, f"{name} must be 0 or in 0.01..100")
        check(1 <= self.pair_views <= 10_000, "pair_views must be in 1..10000")
        check(0 <= self.seed < 2**63, "seed must be in 0..2^63-1")
        if self.auto_augment:
            randaugment.parse(self.auto_augment)
        still = bool(self.center_crop)
        check(not (still and self.random), "center_crop wants hflip=0 and all else off")

    @property
    def affine(self) -> bool:
        """Whether views are rotated or shifted."""
        return self.degrees > 0 or self.translate > 0

    @property
    def mixes(self) -> bool:
        """Whether views are mixed with partners."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def random(self) -> bool:
        """Whether anything but the crop is drawn."""
        colour = bool(self.auto_augment) or self.three_augment or any(self.color_jitter)
        return self.hflip > 0 or self.affine or colour or self.re_prob > 0 or self.mixes

    def for_teacher(self) -> "ViewSpec":
        """The same views at the size the teacher sees them."""
        return replace(self, size=self.teacher_size, teacher_size=0) if self.teacher_size else self


UNKNOWN_VIEWS = ViewSpec(size=1, hflip=0.0, center_crop=1.0)
"""Stands for the views of logits that were imported: nobody can draw them again."""


@dataclass(frozen=True)
class TargetSpec:
    """Which classes are kept of a view, and what is known of the rest."""

    k_max: int = 64
    """The most classes kept per view: the width K of the arrays."""
    tau: float = 0.001
    """Classes of at most this probability are dropped; 0 keeps k_max classes always."""
    k_min: int = 1
    """Classes kept whatever their probability."""
    levels: int = 127
    """Steps of the scale of probabilities: 63 costs 6 % fewer bytes, and precision."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures at which the mass of the dropped classes is stored; the first is 1."""
    true_class: bool = False
    """Store the probability of the true class where it is not kept (of both labels of a mixed
    view), as decoupled distillation wants it."""
    tail_square: bool = False
    """Store the sum of squares of the dropped classes, as correlation losses (DIST) want it."""

    def __post_init__(self) -> None:
        check(1 <= self.k_min <= self.k_max <= MAX_KEPT, "1 <= k_min <= k_max must hold")
        check(7 <= self.levels <= 254, "levels must be in 7..254")
        check(0 <= self.tau < 1, "tau must be in 0..1")
        check(self.temperatures[:1] == (1.0,), "temperatures must begin with 1.0")
        check(len(self.temperatures) <= 8, "at most 8 temperatures can be stored")
        check(all(0.1 <= t <= 100 for t in self.temperatures), "temperatures are in 0.1..100")
        check(len(set(self.temperatures)) == len(self.temperatures), "temperatures repeat")


@dataclass(frozen=True)
class DatasetSpec:
    """Which samples were seen."""

    num_samples: int
    """Length of the sample table, N."""
    num_classes: int
    """Classes of the stored labels; 0 when labels are not used."""
    labels: bool
    """Whether the labels of the data set are those of the teacher."""
    key: KeyKind
    """What names a sample: its file's stem, or its path without the extension."""
    table_sha256: str
    """SHA-256 over every column of the sample table (FORMAT.md, section 2)."""
    classes_sha256: str = ""
    """SHA-256 over the newline-joined class names of an ImageFolder; "" without names."""

    def __post_init__(self) -> None:
        check(1 <= self.num_samples <= MAX_SAMPLES, f"num_samples must be in 1..{MAX_SAMPLES}")


@dataclass(frozen=True)
class CacheSpec:
    """Everything that makes two caches the same or not."""

    dataset: DatasetSpec
    teacher: TeacherSpec
    views: ViewSpec
    targets: TargetSpec
    block_size: int
    """Rows of the sample table per part, B."""
    window: int = 1024
    """Rows of the sample table within which mixup pairs are drawn."""
    renderer: Renderer = "kernels-1"
    """Decoder and image operations: FORMAT.md, section 3.4; "none" when views are unknown."""
    cut_from: str = ""
    """Of a cache that keeps fewer classes than the one it was cut from: SHA-256 over the canonical
    JSON of that one's `targets` and `cut_from` (FORMAT.md, section 6.3); else ""."""
    imported: ImportedSpec | None = None
    """Views that another system drew (FORMAT.md, section 3.6): their parameters are stored, and
    of `views` size, interpolation, fill and scaled_decode hold. Absent when they are drawn."""

    def __post_init__(self) -> None:
        check(1 <= self.block_size <= 2**20, "block_size must be in 1..2^20 rows")
        check(1 <= self.window <= 2**16, "window must be in 1..65536 rows")
        aligned = self.block_size % self.window == 0
        check(aligned or self.num_blocks == 1, "block_size must be a multiple of window")
        check(self.targets.k_max <= self.teacher.num_classes, "k_max exceeds the classes")
        check(self.num_blocks <= MAX_BLOCKS, f"there can be {MAX_BLOCKS} blocks")
        labelled = self.dataset.labels or not self.targets.true_class
        check(labelled, "targets.true_class wants labels")
        known = self.renderer != "none" or self.views == UNKNOWN_VIEWS
        check(known, 'renderer "none" goes with unknown views')
        plain = self.imported is None or not self.replayable or self.views == self._plain()
        check(plain, "imported views are not drawn: views has size, interpolation and fill only")
        size = self.part_bytes / 2**20
        check(size <= 512, f"a part of {size:.0f} MiB is too large for memory (512 MiB)")

    @property
    def part_bytes(self) -> int:
        """The most bytes that the class ids of a part take in memory."""
        return 4 * self.block_size * self.targets.k_max

    @property
    def replayable(self) -> bool:
        """Whether the views can be drawn again; not so of logits that were imported."""
        return self.renderer != "none"

    @property
    def format_version(self) -> str:
        """The oldest version of the format that has all this."""
        return FORMAT_VERSION if self.imported else "1.0"

    @property
    def num_labels(self) -> int:
        """Labels of a view whose probability is stored, P: two when views are mixed."""
        return (1 + self.views.mixes) * self.targets.true_class

    @property
    def num_blocks(self) -> int:
        """Blocks of the sample table; each view number has this many parts."""
        return -(-self.dataset.num_samples // self.block_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, as `sha256:<hex>`."""
        return sha256(canonical_json(self.mapping))

    @property
    def mapping(self) -> dict[str, Any]:
        """Plain values as a manifest has them.

        Unknown views are null, and optional fields are there when they say something.
        """
        mapping = asdict(self) | {"teacher": self.teacher.mapping}
        for name in ("cut_from", "imported"):
            if not mapping[name]:
                del mapping[name]
        return mapping if self.replayable else mapping | {"views": None}

    def _plain(self) -> ViewSpec:
        """What `views` is when nothing is drawn; mixup and cutmix say whether views are mixed."""
        seen, mixed = self.views, 1.0 if self.views.mixes else 0.0
        return ViewSpec(
            size=seen.size,
            interpolation="area" if seen.interpolation == "random" else seen.interpolation,
            scaled_decode=seen.scaled_decode,
            hflip=0.0,
            fill=seen.fill,
            mixup=mixed,
            cutmix=mixed,
        )

    def rows(self, block: int) -> range:
        """Rows of the sample table that `block` holds."""
        return range(
            block * self.block_size, min((block + 1) * self.block_size, self.dataset.num_samples)
        )


def from_mapping(mapping: Mapping[str, Any], where: str) -> CacheSpec:
    """The CacheSpec of a manifest; CacheDamaged when it is not one."""
    if mapping.get("renderer") == "none":
        if mapping.get("views", "") is not None:
            raise CacheDamaged(f'{where}: renderer "none" goes with views null.')
        mapping = {**mapping, "views": asdict(UNKNOWN_VIEWS)}
    try:
        return config.build(CacheSpec, mapping, where)
    except RecipeError as error:
        raise CacheDamaged(
            f"{error} The manifest was changed, or a newer kdcache wrote it."
        ) from None
