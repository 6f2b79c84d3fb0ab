"""Sections of the measurement in their order, with the seconds of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import stage1
from benchmarks.gpu import cuda_tests, students, targets, teachers, workbench
from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.workbench import Figures, Workbench
from benchmarks.stage1 import Case


@dataclass(frozen=True)
class Section:
    """A section, its figures and the seconds they take."""

    name: str
    """Name in the result."""
    share: float
    """Seconds of the nine minutes."""
    least: float
    """Seconds below which it does not begin: start and two rounds."""
    measure: Callable[[Workbench, Allowance], Figures]
    """Measures it; the figures have "bars" where there are goals."""
    lines: Callable[[str, Figures], Iterator[str]]
    """Figures in lines of text."""


def _teacher(name: str, share: float, least: float, compiled: bool = False) -> Section:
    case = Case(name, 224, 256, 2048, 32, precision="bf16", compile=compiled)
    how = "compiled" if compiled else "not compiled"
    measure = partial(teachers.measure, case=case)
    return Section(f"teacher {name}, {how}", share, least, measure, stage1.table)


def _student(name: str, share: float, least: float) -> Section:
    measure = partial(students.measure, student=name)
    return Section(f"student {name}", share, least, measure, students.lines)


BEIT, VIT, CONVNEXT = "beitv2_base_patch16_224", "vit_large_patch16_224", "convnext_base"
TESTS = Section("CUDA tests", 80, 20, cuda_tests.measure, cuda_tests.lines)
TARGETS = Section("targets", 25, 12, targets.measure, targets.lines)
REGIONS = Section("regions", 25, 15, students.regions, students.lines_of_regions)
COHORT = Section("cohort", 30, 20, students.cohort, students.lines_of_cohort)
FULL = (
    TESTS,
    _teacher(BEIT, 30, 20),
    _student("resnet50", 60, 45),
    _student("vit_small_patch16_224", 45, 30),
    _student("resnet18", 40, 25),
    TARGETS,
    REGIONS,
    COHORT,
    _teacher(BEIT, 45, 40, compiled=True),
    _teacher(VIT, 30, 25),
    _teacher(CONVNEXT, 25, 20),
    _teacher(VIT, 45, 40, compiled=True),
    _teacher(CONVNEXT, 45, 40, compiled=True),
)
_TINY = Case("test_resnet", 32, 32, samples=64, views=4, bound="rendering")
SHORT = (
    TESTS,
    Section(
        "teacher test_resnet, not compiled",
        *(30, 0, partial(teachers.measure, case=_TINY), stage1.table),
    ),
    _student(workbench.SHORT.student, 60, 0),
    TARGETS,
    REGIONS,
    COHORT,
)


def sections(short: bool) -> tuple[Section, ...]:
    """Sections in their order; those of the short form begin whatever is left."""
    return tuple(replace(one, least=0) for one in SHORT) if short else FULL
