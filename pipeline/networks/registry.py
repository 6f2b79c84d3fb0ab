"""Registry of the libraries that networks come from: one prefix of a name, one module here.

    resnet50.a1_in1k                          timm
    torchvision:resnet50:IMAGENET1K_V2        torchvision, the weights by their enum
    transformers:google/vit-base-patch16-224  transformers, from the Hub or a folder
    python:my_lab.models:build                a function, which is the user's code

A network is created untrained, as a student or for weights from a file, or with the weights that
its name stands for. Code is imported for a `python:` name that the user has given, in a command or
a recipe; a name found in a cache, a run or a folder is refused (`refuse_code`).
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime.device_memory import is_out_of_memory
from pipeline.networks import of_python, of_timm, of_torchvision, of_transformers


class Source(Protocol):
    """A library that networks come from."""

    def untrained(
        self, name: str, num_classes: int, options: Mapping[str, Any], config: Mapping[str, Any]
    ) -> nn.Module:
        """Create a network whose weights are drawn from torch's generator.

        Args:
            name: Name within the library.
            num_classes: Classes of its head; 0 = its own number.
            options: Arguments of the network.
            config: Keys of timm's `pretrained_cfg` that override its own.

        Raises:
            UsageError: There is no such network, or it takes no such options.
        """

    def pretrained(self, name: str) -> tuple[str, nn.Module]:
        """Create a network with its weights; also its name in a cache, never a path.

        Raises:
            UsageError: There is no such network, or the name has no weights.
            TeacherError: Its weights are not available.
        """


SOURCES: dict[str, Source] = {
    "torchvision": of_torchvision,
    "transformers": of_transformers,
    "python": of_python,
}
"""Prefix of a name → source; timm's names have none."""
_PARTS = {"torchvision": 2, "python": 3}
"""Prefix → parts of a name before the part that may be a file or folder of weights."""


def source_of(name: str) -> tuple[Source, str]:
    """Return the source of a network and its name there."""
    prefix, _, rest = name.partition(":")
    return (SOURCES[prefix], rest) if prefix in SOURCES else (of_timm, name)


def is_foreign(name: str) -> bool:
    """Return True for the name of a network that is not timm's."""
    return name.partition(":")[0] in SOURCES


def split_weights(name: str) -> tuple[str, str]:
    """Split a name of another library from what follows it: an enum, a file or a folder, or ""."""
    parts = name.split(":")
    count = _PARTS.get(parts[0], len(parts))
    return ":".join(parts[:count]), ":".join(parts[count:])


def untrained(
    name: str,
    num_classes: int = 0,
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create an untrained network of any source; arguments and errors as `Source.untrained`."""
    source, rest = source_of(name)
    try:
        return source.untrained(rest, num_classes, options or {}, config or {})
    except KdcacheError:
        raise
    except Exception as error:  # of networks that check little: of any kind
        if is_out_of_memory(error):
            raise
        given = ", ".join(f"{key}={value}" for key, value in (options or {}).items())
        raise UsageError(
            f"the network {name} cannot be made with {given or 'its defaults'} "
            f"({str(error).partition(chr(10))[0]}). Correct its options (student_kwargs); drop and "
            "drop_path of 0 are left out."
        ) from None


def pretrained(name: str) -> tuple[str, nn.Module]:
    """Create a network of any source with its weights; as `Source.pretrained`."""
    source, rest = source_of(name)
    return source.pretrained(rest)


def refuse_code(name: str, found_in: str, now: str) -> None:
    """Raise UsageError for a `python:` name that comes from a file, which may be hostile."""
    if name.startswith("python:"):
        raise UsageError(
            f"the network of {found_in} is a function of Python, {name!r}, and kdcache runs no "
            f"code that a file names. If you trust it, name it yourself: {now}."
        )
