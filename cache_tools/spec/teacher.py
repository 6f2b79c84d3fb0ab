"""Identity of the teacher, or of the members of an ensemble, as in the manifest."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cache_tools.config import check
from cache_tools.spec.canonical import canonical_json, sha256

MAX_CLASSES = 2**24
MAX_MEMBERS = 64
ENSEMBLE = "ensemble"
"""Architecture in the manifest of several teachers together."""
Precision = Literal["fp32", "bf16", "fp16"]
_OPTIONAL = {
    "members": (),
    "mean": None,
    "std": None,
    "input_size": 0,
    "interpolation": "",
    "class_map_sha256": "",
}
"""Fields of teachers that a manifest contains only with other values than these."""


@dataclass(frozen=True)
class MemberSpec:
    """One teacher of an ensemble, and the cache of its targets."""

    name: str
    """The member's `TeacherSpec.name`."""
    architecture: str
    """The member's `TeacherSpec.architecture`."""
    weights_sha256: str
    """The member's `TeacherSpec.weights_sha256`."""
    cache: str
    """Fingerprint of the member's cache; "" when all ran in one pass."""
    weight: float
    """Weight of its probabilities in the mean; all weights add up to 1."""
    mean: tuple[float, float, float] | None = None
    """In one pass: the member's `TeacherSpec.mean`; unset otherwise, as the four below."""
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
    """Identity of a network: enough to load it again and to recognize it."""

    name: str
    """As the user wrote it: a timm name, a Hub id, a name of another library with its prefix
    ("torchvision:", "transformers:", "python:"), or "local:" and the architecture."""
    architecture: str
    """Name of the architecture: timm's, or with the prefix of its library."""
    weights_sha256: str
    """SHA-256 over the state dict in canonical order (FORMAT.md, section 2)."""
    num_classes: int
    """Length of its logits, C."""
    mean: tuple[float, float, float]
    """Mean of its normalization of RGB / 255."""
    std: tuple[float, float, float]
    """Standard deviation of its normalization of RGB / 255."""
    precision: Precision = "fp32"
    """Autocast type of the forward pass; logits are always taken to fp32 first."""
    members: tuple[MemberSpec, ...] = ()
    """Teachers of an ensemble, in the order of FORMAT.md, section 2. The manifest leaves out this
    and the fields below while they have their defaults."""
    input_size: int = 0
    """Height and width in pixels of its training; its inputs have the size in `ViewSpec`."""
    interpolation: str = ""
    """Resampling of its training; its inputs have the one in `ViewSpec`."""
    class_map_sha256: str = ""
    """SHA-256 over the map from the classes of its head to these (FORMAT.md, section 2)."""

    def __post_init__(self) -> None:
        weights = [member.weight for member in self.members]
        check(len(weights) != 1 and len(weights) <= MAX_MEMBERS, "members are none, or 2..64")
        check(all(weight > 0 for weight in weights), "weights of members must be positive")
        check(not weights or abs(sum(weights) - 1) < 1e-6, "weights of members add up to 1")
        one_pass = {not member.cache for member in self.members}
        check(len(one_pass) < 2, "members ran in one pass, or each has a cache")
        check(2 <= self.num_classes <= MAX_CLASSES, f"num_classes must be in 2..{MAX_CLASSES}")
        check(all(s > 0 for s in self.std), "std must be positive")

    @classmethod
    def of_members(
        cls, members: tuple[MemberSpec, ...], num_classes: int, precision: Precision = "fp32"
    ) -> "TeacherSpec":
        """Describe an ensemble by the names, weights and shares of its members."""
        name = " + ".join(f"{member.weight:.4g}*({member.name})" for member in members)
        digest = sha256(canonical_json([[m.weights_sha256, m.weight] for m in members]))
        no_mean, no_std = (0.0,) * 3, (1.0,) * 3
        return cls(name, ENSEMBLE, digest, num_classes, no_mean, no_std, precision, members)

    def as_member(self, weight: float) -> MemberSpec:
        """Describe this network as a member of an ensemble that runs in one pass."""
        names = [field.name for field in fields(MemberSpec) if hasattr(self, field.name)]
        return MemberSpec(cache="", weight=weight, **{n: getattr(self, n) for n in names})

    @property
    def mapping(self) -> dict[str, Any]:
        """Plain values as in a manifest, without unset optional fields."""
        mapping = _without_unset(asdict(self))
        if members := mapping.pop("members", ()):
            mapping["members"] = tuple(_without_unset(member) for member in members)
        return mapping


def _without_unset(teacher: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in teacher.items() if k not in _OPTIONAL or v != _OPTIONAL[k]}
