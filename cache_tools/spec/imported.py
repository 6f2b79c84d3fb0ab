"""That views were imported, not drawn: what is stored of them and known of their pixels."""

from dataclasses import dataclass

from cache_tools.config import check

MAX_OPERATIONS = 8
_MAX_NOTE = 500


@dataclass(frozen=True)
class ImportedSpec:
    """Views whose parameters stand in the cache, because another system drew them.

    Pixels are made by our renderer; the teacher saw those of its own, which differ as `note` says.
    """

    origin: str
    """The format they came in, such as "FKD"."""
    note: str
    """How far the pixels here can be from those the teacher saw."""
    operations: int = 0
    """Image operations of a view, L."""
    erased: int = 0
    """Erased boxes of a view, E: none, or one of the colour `ViewSpec.fill`."""
    seeds: bool = False
    """Whether the seed is stored from which the other system draws a view."""

    def __post_init__(self) -> None:
        check(0 < len(self.origin) <= 80, "origin must have 1..80 characters")
        check(len(self.note) <= _MAX_NOTE, f"note must have at most {_MAX_NOTE} characters")
        check(0 <= self.operations <= MAX_OPERATIONS, "imported views have 0..8 operations")
        check(self.erased in (0, 1), "imported views have at most one erased box")
