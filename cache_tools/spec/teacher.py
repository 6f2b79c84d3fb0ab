"""Who spoke: one teacher, or the members of an ensemble, as the manifest names them."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cache_tools.config import check

MAX_CLASSES = 2**24
MAX_MEMBERS = 64
ENSEMBLE = "ensemble"
"""Stands for the architecture of several teachers together."""
Precision = Literal["fp32", "bf16", "fp16"]
_OPTIONAL = {
    "members": (),
    "mean": None,
    "std": None,
    "input_size": 0,
    "interpolation": "",
    "class_map_sha256": "",
}
"""Fields of teachers that stand in a manifest only when they have another value than this."""


@dataclass(frozen=True)
class MemberSpec:
    """One teacher of an ensemble, and the cache in which it spoke."""

    name: str
    """The member's `TeacherSpec.name`."""
    architecture: str
    """The member's `TeacherSpec.architecture`."""
    weights_sha256: str
    """The member's `TeacherSpec.weights_sha256`."""
    cache: str
    """Fingerprint of the member's cache; "" when all were asked in one pass."""
    weight: float
    """Its share of the mean of probabilities; all shares add up to 1."""
    mean: tuple[float, float, float] | None = None
    """In one pass: the mean that this member normalises with, and so with the four below."""
    std: tuple[float, float, float] | None = None
    """The member's `TeacherSpec.std`."""
    input_size: int = 0
    """The member's `TeacherSpec.input_size`."""
    interpolation: str = ""
    """The member's `TeacherSpec.interpolation`."""
    class_map_sha256: str = ""
    """The member's `TeacherSpec.class_map_sha256`."""


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
    members: tuple[MemberSpec, ...] = ()
    """The teachers of an ensemble, in the order of FORMAT.md, section 2. This and the fields below
    are no keys of the manifest while they have their defaults."""
    input_size: int = 0
    """Height and width in pixels that it was made for; `ViewSpec` says what it was shown."""
    interpolation: str = ""
    """Resampling that it was made for; `ViewSpec` says what it was shown."""
    class_map_sha256: str = ""
    """SHA-256 over the map from the classes of its head to these (FORMAT.md, section 2)."""

    def __post_init__(self) -> None:
        shares = [member.weight for member in self.members]
        check(len(shares) != 1 and len(shares) <= MAX_MEMBERS, "members are none, or 2..64")
        check(all(share > 0 for share in shares), "weights of members must be positive")
        check(not shares or abs(sum(shares) - 1) < 1e-6, "weights of members add up to 1")
        one_pass = {not member.cache for member in self.members}
        check(len(one_pass) < 2, "members were asked in one pass, or each has a cache")
        check(2 <= self.num_classes <= MAX_CLASSES, f"num_classes must be in 2..{MAX_CLASSES}")
        check(all(s > 0 for s in self.std), "std must be positive")

    @property
    def mapping(self) -> dict[str, Any]:
        """Plain values as a manifest has them, without optional fields that say nothing."""
        mapping = _without_unused(asdict(self))
        if members := mapping.pop("members", ()):
            mapping["members"] = tuple(_without_unused(member) for member in members)
        return mapping


def _without_unused(teacher: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in teacher.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}
