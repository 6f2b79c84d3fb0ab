"""What a cache is of: data set, teacher, views and targets, and the fingerprint of all four.

The `CacheSpec` stands in the manifest as canonical JSON; its SHA-256 is the cache's fingerprint,
the name that a paper can print and a student's `result.json` repeats. The number of views is not
part of it: a cache that grows by ten views is still the same cache, with more parts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cache_tools import recipe
from cache_tools.errors import CacheDamaged, RecipeError

FORMAT_VERSION = "0.1"
MAX_CLASSES = 65_534  # index_delta is u2: 0 marks an empty slot, 65535 is the fill value
Renderer = Literal["area-1"]
KeyKind = Literal["stem", "path"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ViewSpec:
    """The augmentation: with a sample id and a view number it says every pixel of a view."""

    size: int
    """Height and width of a view in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a random resized crop takes, lowest and highest."""
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width by height of the crop, lowest and highest."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    degrees: float = 0.0
    """Rotation is uniform in [-degrees, degrees]; 0 = off."""
    translate: float = 0.0
    """Shift along each axis is uniform in ±translate·size; 0 = off."""
    fill: tuple[int, int, int] = (128, 128, 128)
    """Colour (RGB) that a rotation or shift brings in at the border."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup (Zhang et al., ICLR 2018); 0 = off."""
    seed: int = 0
    """Seed of every draw, 0 ≤ seed < 2^63."""

    def __post_init__(self) -> None:
        _check(1 <= self.size <= 4096, "size must be in 1..4096 pixels")
        _check(0 < self.scale[0] <= self.scale[1] <= 1, "scale must rise within (0, 1]")
        _check(0 < self.ratio[0] <= self.ratio[1], "ratio must rise and be positive")
        _check(0 <= self.hflip <= 1, "hflip is a probability, 0..1")
        _check(0 <= self.degrees <= 180, "degrees must be in 0..180")
        _check(0 <= self.translate <= 1, "translate must be in 0..1")
        _check(all(0 <= c <= 255 for c in self.fill), "fill must be three values in 0..255")
        _check(self.mixup == 0 or 0.01 <= self.mixup <= 100, "mixup must be 0 or in 0.01..100")
        _check(0 <= self.seed < 2**63, "seed must be in 0..2^63-1")

    @property
    def affine(self) -> bool:
        """Whether views are rotated or shifted."""
        return self.degrees > 0 or self.translate > 0


@dataclass(frozen=True)
class TargetSpec:
    """Which classes are kept of a view, and at which temperatures the rest is weighed."""

    k_max: int = 64
    """The most classes kept per view: the width K of the arrays."""
    tau: float = 0.001
    """Classes of at most this probability are dropped; 0 keeps k_max classes always."""
    k_min: int = 1
    """Classes kept whatever their probability."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures at which the mass of the dropped classes is stored; the first is 1."""

    def __post_init__(self) -> None:
        _check(1 <= self.k_min <= self.k_max <= MAX_CLASSES, "1 <= k_min <= k_max must hold")
        _check(0 <= self.tau < 1, "tau must be in 0..1")
        _check(self.temperatures[:1] == (1.0,), "temperatures must begin with 1.0")
        _check(len(self.temperatures) <= 8, "at most 8 temperatures can be stored")
        _check(all(0.1 <= t <= 100 for t in self.temperatures), "temperatures are in 0.1..100")
        _check(len(set(self.temperatures)) == len(self.temperatures), "temperatures repeat")


@dataclass(frozen=True)
class TeacherSpec:
    """Which network spoke: enough to load it again and to know that it is the same."""

    name: str
    """As the user wrote it: a timm name, a Hub id or the last part of a path."""
    architecture: str
    """timm's name of the architecture."""
    weights_sha256: str
    """SHA-256 over the state dict in canonical order (FORMAT.md, section 2)."""
    num_classes: int
    """Length of its logits, C."""
    mean: tuple[float, float, float]
    """Mean it normalises RGB / 255 with."""
    std: tuple[float, float, float]
    """Standard deviation it normalises RGB / 255 with."""
    precision: Precision = "fp32"
    """Autocast type of the forward pass; logits are always taken to fp32 first."""

    def __post_init__(self) -> None:
        _check(2 <= self.num_classes <= MAX_CLASSES, f"num_classes must be in 2..{MAX_CLASSES}")
        _check(all(s > 0 for s in self.std), "std must be positive")


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
        _check(self.num_samples >= 1, "num_samples must be positive")


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
    renderer: Renderer = "area-1"
    """Decoder and resampling: accurate-DCT JPEG, INTER_AREA crop-resize, then flip and affine."""

    def __post_init__(self) -> None:
        _check(1 <= self.block_size <= 2**20, "block_size must be in 1..2^20 rows")
        _check(1 <= self.window <= 2**16, "window must be in 1..65536 rows")
        aligned = self.block_size % self.window == 0
        _check(aligned or self.num_blocks == 1, "block_size must be a multiple of window")
        _check(self.targets.k_max <= self.teacher.num_classes, "k_max exceeds the classes")
        chunk = 2 * self.block_size * self.targets.k_max
        _check(
            chunk <= 2**29, f"a part of {chunk / 2**20:.0f} MiB is too large for memory (512 MiB)"
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of the sample table; each view number has this many parts."""
        return -(-self.dataset.num_samples // self.block_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, as `sha256:<hex>`."""
        return sha256(canonical_json(asdict(self)))

    def rows(self, block: int) -> range:
        """Rows of the sample table that `block` holds."""
        return range(
            block * self.block_size, min((block + 1) * self.block_size, self.dataset.num_samples)
        )


def from_mapping(mapping: Mapping[str, Any], where: str) -> CacheSpec:
    """The CacheSpec of a manifest; CacheDamaged when it is not one."""
    try:
        return recipe.build(CacheSpec, mapping, where)
    except RecipeError as error:
        raise CacheDamaged(
            f"{error} The manifest was changed, or a newer kdcache wrote it."
        ) from None


def canonical_json(value: Any) -> bytes:
    """JSON in its one canonical form: sorted keys, no spaces, ASCII, shortest floats, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def sha256(data: bytes) -> str:
    """Digest as it is written in manifests and commit records."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first field in which two nested specs differ, as "views.size: 224 against 192"."""
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if found := difference(a, b, f"{prefix}{key}."):
                return found
        elif a != b:
            return f"{prefix}{key}: {a!r} against {b!r}"
    return None


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message + ".")
