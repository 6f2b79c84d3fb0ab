"""Names of classes are timm's, and cost no import of it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from timm.data import ImageNetInfo, infer_imagenet_subset

from cache_tools.spec import class_names
from cache_tools.spec.canonical import sha256
from cache_tools.spec.teacher import TeacherSpec
from cache_tools.store.cache import Cache

TEACHER = TeacherSpec("t", "a", "sha256:0", 1000, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("num_classes", class_names._LISTS)
def test_synsets_and_their_names_are_timms(num_classes: int) -> None:
    subset = infer_imagenet_subset({"num_classes": num_classes})
    info: Any = ImageNetInfo(subset)  # type: ignore[arg-type, no-untyped-call]
    found = class_names.synsets(num_classes)
    assert list(found) == info.label_names()
    for name in found[:: len(found) // 500]:
        first = info.label_name_to_description(name).partition(",")[0]
        assert class_names.described(name) == f"{first} ({name})"
    assert class_names.synsets_of(sha256("\n".join(found).encode())) == found


def test_other_names_stay_as_they_are() -> None:
    assert class_names.names(["cat", "n01440764"], 2)(0) == "cat"
    assert class_names.names(["cat", "n01440764"], 2)(1) == "tench (n01440764)"
    assert class_names.names(["cat"], 2)(1) == "class 1"
    assert class_names.synsets(999) == class_names.synsets_of("") == ()
    four = class_names.summary(["a", "b", "c", "d"])
    assert (four, class_names.summary(["a", "b", "c"])) == ("a, b, c, …", "a, b, c")


def test_classes_of_a_mapped_teacher_are_unknown() -> None:
    assert class_names.of_teacher(TEACHER) == class_names.synsets(1000)
    mapped = replace(TEACHER, class_map_sha256="sha256:0")
    assert class_names.of_teacher(mapped) == ()
    members = TEACHER.as_member(0.4), mapped.as_member(0.6)
    assert class_names.of_teacher(TeacherSpec.of_members(members, 1000)) == ()


def test_names_in_a_cache_rule_over_the_teachers(digits_cache: Path) -> None:
    spec = Cache.open(digits_cache).spec
    assert class_names.of_cache(spec) == ()
    wide = replace(spec, teacher=TEACHER)
    assert class_names.of_cache(wide)[0] == "n01440764"
    own = replace(spec.dataset, classes_sha256=sha256(b"cat\ndog"))
    assert class_names.of_cache(replace(wide, dataset=own)) == ()


def test_timm_is_not_imported() -> None:
    code = (
        "import sys; from cache_tools.spec import class_names\n"
        "print(class_names.described('n01440764'), {'timm', 'torch'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "tench (n01440764) set()\n"


@pytest.mark.parametrize("timm", [None, SimpleNamespace(origin="/nowhere/timm/__init__.py")])
def test_without_timm_a_synset_is_its_own_name(
    monkeypatch: pytest.MonkeyPatch, timm: object
) -> None:
    monkeypatch.setattr(class_names, "find_spec", lambda _: timm)
    assert class_names._lines("imagenet_synset_to_lemma.txt") == []
    monkeypatch.setattr(class_names, "_lemmas", dict)
    assert class_names.described("n01440764") == "n01440764"
