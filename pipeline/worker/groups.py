"""What a worker is asked for: parts of one block that share their decoded images."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_tools.store.commits import Part


@dataclass(frozen=True)
class Group:
    """Parts of one block that are rendered from one decode."""

    block: int
    """Block of the sample table."""
    views: tuple[int, ...]
    """View numbers."""

    @property
    def parts(self) -> list[Part]:
        """Its parts, in the order of its views."""
        return [Part(view, self.block) for view in self.views]


def groups(parts: Sequence[Part], size: int) -> list[Group]:
    """Parts as groups: up to `size` views of a block are rendered from one decode."""
    by_block: dict[int, list[int]] = {}
    for part in parts:
        by_block.setdefault(part.block, []).append(part.view)
    return [
        Group(block, tuple(numbers[i : i + size]))
        for block, numbers in sorted(by_block.items())
        for i in range(0, len(numbers), size)
    ]
