"""Functions of packages above this one, by entry point: `cache_tools` imports none of them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from cache_tools.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin(Generic[F]):
    """An entry point and the type of the function it names."""

    group: str
    """Group of entry points, such as "kdcache.teachers"."""
    name: str
    """Name in that group."""
    purpose: str
    """Its purpose as a verb phrase, for the message that it is missing."""

    def load(self) -> F:
        """Import the function.

        Raises:
            UsageError: No installed package offers it.
        """
        found = self.find()
        if found is None:
            raise UsageError(
                f"no installed package can {self.purpose} (entry point {self.name!r} of "
                f"{self.group}). Install kdcache as a whole."
            )
        return found

    def find(self) -> F | None:
        """Import the function if an installed package offers it."""
        for entry in entry_points(group=self.group, name=self.name):
            return cast(F, entry.load())
        return None
