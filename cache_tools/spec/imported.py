"""Origin of imported views: the stored parameters, and the difference of their pixels."""

from dataclasses import dataclass

from cache_tools.config import check

MAX_OPERATIONS = 8
_MAX_NOTE = 500


@dataclass(frozen=True)
class ImportedSpec:
    """Views that another system drew and whose parameters the cache stores.

    Our renderer makes the pixels; the teacher's own renderer made others, as `note` describes.
    """

    origin: str
    """Format of the source, such as "FKD"."""
    note: str
    """Largest difference between our pixels and the teacher's input."""
    operations: int = 0
    """Image operations of a view, L."""
    erased: int = 0
    """Erased boxes of a view, E: none, or one of the colour `ViewSpec.fill`."""
    seeds: bool = False
    """Storage of the seed from which the other system draws a view."""

    def __post_init__(self) -> None:
        check(0 < len(self.origin) <= 80, "origin must have 1..80 characters")
        check(len(self.note) <= _MAX_NOTE, f"note must have at most {_MAX_NOTE} characters")
        check(0 <= self.operations <= MAX_OPERATIONS, "imported views have 0..8 operations")
        check(self.erased in (0, 1), "imported views have at most one erased box")
