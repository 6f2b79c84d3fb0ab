"""Class names: the data set's own, and timm's words for ImageNet's synsets.

timm's text files are read from its folder, without an import of timm: `cache_tools` needs no torch.
Where timm is not installed, a synset is its own name.
"""

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import sha256
from cache_tools.spec.teacher import TeacherSpec

Names = Callable[[int], str]
"""Class → name."""
_LISTS = {
    1_000: "imagenet_synsets.txt",
    11_221: "imagenet21k_miil_synsets.txt",
    11_821: "imagenet12k_synsets.txt",
    21_841: "imagenet22k_synsets.txt",
    21_842: "imagenet22k_ms_synsets.txt",
    21_843: "imagenet21k_goog_synsets.txt",
}
"""timm's file of synsets by the number of classes (`timm.data.infer_imagenet_subset`)."""
_SHOWN = 3


def names(classes: Sequence[str], num_classes: int) -> Names:
    """Return the names of `num_classes` classes; numbers, unless `classes` names them all."""
    if len(classes) != num_classes:
        return lambda index: f"class {index}"
    return lambda index: described(classes[index])


def described(name: str) -> str:
    """Return a class name for display: "tench (n01440764)" of a synset, others unchanged."""
    lemma = _lemmas().get(name)
    return f"{lemma.partition(',')[0]} ({name})" if lemma else name


def summary(classes: Sequence[str]) -> str:
    """Return the first class names for display, such as "tench (n01440764), …"."""
    return ", ".join(map(described, classes[:_SHOWN])) + ", …" * (len(classes) > _SHOWN)


def of_cache(spec: CacheSpec) -> tuple[str, ...]:
    """Return the class names that follow from a cache alone; () where none do.

    With class names of its data set, they are ImageNet's synsets if the digests are equal; without,
    those of the teacher.
    """
    digest = spec.dataset.classes_sha256
    return synsets_of(digest) if digest else of_teacher(spec.teacher)


def of_teacher(teacher: TeacherSpec) -> tuple[str, ...]:
    """Return the synsets that a teacher predicts; () if it has other classes than ImageNet's."""
    maps = [teacher.class_map_sha256, *(member.class_map_sha256 for member in teacher.members)]
    return () if any(maps) else synsets(teacher.num_classes)


@functools.cache
def synsets(num_classes: int) -> tuple[str, ...]:
    """Return the synsets that timm gives to a network of so many classes; () if it gives none."""
    return tuple(_lines(_LISTS[num_classes])) if num_classes in _LISTS else ()


@functools.cache
def synsets_of(classes_sha256: str) -> tuple[str, ...]:
    """Return the list of synsets of this digest (`DatasetSpec.classes_sha256`); () if none is."""
    for found in map(synsets, _LISTS):
        if found and sha256("\n".join(found).encode()) == classes_sha256:
            return found
    return ()


@functools.cache
def _lemmas() -> dict[str, str]:
    """Words of each synset, separated by commas."""
    lines = (line.partition("\t") for line in _lines("imagenet_synset_to_lemma.txt"))
    return {synset: words for synset, _, words in lines}


def _lines(name: str) -> list[str]:
    """Read a file of timm's data on ImageNet; no lines where there is none."""
    timm = find_spec("timm")
    file = Path(timm.origin if timm and timm.origin else "").parent / "data/_info" / name
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
