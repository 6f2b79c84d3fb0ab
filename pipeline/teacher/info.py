"""Identity of a teacher that runs in the caller's own program."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from cache_tools import config
from cache_tools.errors import TeacherError
from cache_tools.spec.teacher import Precision, TeacherSpec
from pipeline.teacher.teacher import weights_sha256


@dataclass(frozen=True)
class TeacherInfo:
    """Identity of a teacher, stored in the cache: enough to recognise it again.

    Another value of any field is another teacher, whose targets never join the same cache.

        >>> kdcache.TeacherInfo("our-vit", "sha256:" + 64 * "0", num_classes=1000).spec.name
        'our-vit'

    Attributes:
        name: Name for readers of the cache.
        weights_sha256: SHA-256 over its weights, 64 hexadecimal digits, such as those of a file.
        num_classes: Length of its logits, C.
        mean: Mean of red, green and blue (of 0..1) with which its pictures are normalised.
        std: Standard deviation, likewise.
        architecture: Name of its architecture; empty: that of the teacher.
        precision: Type in which it computes.
        input_size: Height and width in pixels of its training; 0: unset.
        interpolation: Resampling of its training; empty: unset.
    """

    name: str
    weights_sha256: str
    num_classes: int
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: Sequence[float] = IMAGENET_DEFAULT_STD
    architecture: str = ""
    precision: Precision = "fp32"
    input_size: int = 0
    interpolation: str = ""

    @classmethod
    def of(cls, model: nn.Module, name: str = "", precision: Precision = "fp32") -> Self:
        """Describe a network of timm's as `kdcache cache` would.

        Args:
            model: Network with a `pretrained_cfg`.
            name: Its name; empty: timm's, with the tag of its weights.
            precision: Type in which it computes.

        Raises:
            TeacherError: It has no such configuration.
        """
        known: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        if lacking := [k for k in ("architecture", "mean", "std") if k not in known]:
            raise TeacherError(
                f"this {type(model).__name__} has no {lacking[0]} in a pretrained_cfg as timm's "
                "networks do. Pass the fields of TeacherInfo instead."
            )
        tag = f".{known['tag']}" if known.get("tag") else ""
        return cls(
            name=name or f"{known['architecture']}{tag}",
            weights_sha256=weights_sha256(model),
            num_classes=int(model.num_classes),  # type: ignore[arg-type]
            mean=known["mean"],
            std=known["std"],
            architecture=known["architecture"],
            precision=precision,
            input_size=int((known.get("input_size") or (3, 0, 0))[-1]),
            interpolation=str(known.get("interpolation") or ""),
        )

    @property
    def spec(self) -> TeacherSpec:
        """The identity as in the manifest of a cache.

        Raises:
            TeacherError: A field cannot be.
        """
        digest = self.weights_sha256.removeprefix("sha256:")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise TeacherError(
                f"weights_sha256={self.weights_sha256!r} is no SHA-256. Pass 64 hexadecimal "
                "digits, such as hashlib.sha256(open(FILE, 'rb').read()).hexdigest()."
            )
        values = asdict(self) | {"weights_sha256": f"sha256:{digest}"}
        values |= {"mean": [*map(float, self.mean)], "std": [*map(float, self.std)]}
        values["architecture"] = self.architecture or self.name
        try:
            return config.build(TeacherSpec, values, "the teacher")
        except ValueError as error:
            raise TeacherError(str(error)) from None
