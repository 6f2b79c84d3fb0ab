"""Result of a command run in the test's process."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Exit code and captured streams."""

    code: int
    out: str
    err: str
