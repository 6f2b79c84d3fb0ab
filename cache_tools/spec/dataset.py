"""Identity of a cache's data set: its size, classes and labels, and the sample table's digest."""

from dataclasses import dataclass
from typing import Literal

from cache_tools.config import check

MAX_SAMPLES = 2**32
NO_LABEL = -1
"""Label of a sample without a class."""
KeyKind = Literal["stem", "path"]
SplitName = Literal["train", "validation", "teacher"]


@dataclass(frozen=True)
class DatasetSpec:
    """Data set of a cache."""

    num_samples: int
    """Length of the sample table, N."""
    num_classes: int
    """Classes of the stored labels; 0 when labels are not used."""
    labels: bool
    """True if the labels of the data set are classes of the teacher."""
    key: KeyKind
    """Name of a sample: its file's stem, or its path without the extension."""
    table_sha256: str
    """SHA-256 over every column of the sample table (FORMAT.md, section 2)."""
    classes_sha256: str = ""
    """SHA-256 over the newline-joined names of its classes, or of all of the teacher's where they
    are some of ImageNet's synsets; "" without names."""

    def __post_init__(self) -> None:
        check(1 <= self.num_samples <= MAX_SAMPLES, f"num_samples must be in 1..{MAX_SAMPLES}")
