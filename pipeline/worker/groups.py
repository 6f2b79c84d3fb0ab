"""Decode groups: parts of one block that share their decoded images."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_tools.store.commits import Part
from pipeline.recipe import Order


@dataclass(frozen=True)
class DecodeGroup:
    """Parts of one block, rendered from one decode of each image."""

    block: int
    """Block of the sample table."""
    views: tuple[int, ...]
    """View numbers."""

    @property
    def parts(self) -> list[Part]:
        """Its parts, in the order of its views."""
        return [Part(view, self.block) for view in self.views]


def decode_groups(parts: Sequence[Part], size: int, order: Order = "blocks") -> list[DecodeGroup]:
    """Parts grouped by block, in up to `size` views each.

    In the order "views", the first views of all blocks come before further views of any.
    """
    by_block: dict[int, list[int]] = {}
    for part in parts:
        by_block.setdefault(part.block, []).append(part.view)
    groups = [
        DecodeGroup(block, tuple(numbers[i : i + size]))
        for block, numbers in sorted(by_block.items())
        for i in range(0, len(numbers), size)
    ]
    return groups if order == "blocks" else sorted(groups, key=lambda group: group.views[0])
