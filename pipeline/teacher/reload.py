"""Load the teacher of a cache again and check its identity against the cache.

A network is identified by its weights and its class map, and so is every member of an ensemble.
Their files and the order of their names do not matter.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cache_tools.errors import CacheMismatch, TeacherError, UsageError
from cache_tools.spec.teacher import MemberSpec, TeacherSpec
from pipeline.networks import registry
from pipeline.teacher import checkpoint
from pipeline.teacher import class_map as classes
from pipeline.teacher import teacher as teachers
from pipeline.teacher.class_map import ClassMap
from pipeline.teacher.teacher import Teacher


def load(
    spec: TeacherSpec, view_size: int, names: Sequence[str] = (), class_maps: Sequence[str] = ()
) -> Teacher:
    """Load the teacher with the identity `spec`.

    Args:
        spec: Identity of a cache's teacher.
        view_size: Height and width of the views in pixels.
        names: Names, folders or files of the networks, in any order; none takes the cache's names.
        class_maps: Class maps of those that have one, in any order.

    Raises:
        UsageError: It was mixed from caches, or not every network or class map is named.
        CacheMismatch: These are other networks, or other class maps.
        TeacherError: Weights are not available.
    """
    _check_reloadable(spec)
    members = spec.members or (spec.as_member(1.0),)
    if not names:
        names = [member.name for member in members]
        for name in names:
            registry.refuse_code(name, "this cache", f"--teacher {name} for each teacher")
    if len(names) != len(members):
        raise UsageError(
            f"the teacher of this cache is {len(members)} networks ("
            f"{', '.join(member.name for member in members)}) and {len(names)} are named. Pass "
            "--teacher for each of them."
        )
    left = list(members)
    found = [_member(name, left, spec, view_size, class_maps) for name in names]
    if not spec.members:
        return found[0][0]
    return teachers.ensemble([t for t, _ in found], [member.weight for _, member in found])


def _check_reloadable(spec: TeacherSpec) -> None:
    """Raise UsageError for targets mixed from caches, or imported without weights."""
    if not spec.weights_sha256:
        raise UsageError(
            f"the targets of this cache were imported and the weights of {spec.name!r} are "
            "unknown: its teacher cannot run again. verify without --recompute checks the rest; "
            "train with mode=kd."
        )
    if any(member.cache for member in spec.members):
        names = ", ".join(member.name for member in spec.members)
        raise UsageError(
            f"the teacher of this cache is an ensemble ({names}), mixed from their caches: "
            "no single network can run again. Use each member's own cache."
        )


def _member(
    name: str, left: list[MemberSpec], spec: TeacherSpec, view_size: int, maps: Sequence[str]
) -> tuple[Teacher, MemberSpec]:
    """Load a network and find its member among `left`, which is removed from the list."""
    architectures = {""}  # a file of weights may have any architecture of the members left
    if Path(name).suffix.lower() in checkpoint.SUFFIXES:
        recorded = {member.name.removeprefix("local:") for member in left}
        architectures = {n for n in recorded if not n.startswith("python:")} or {""}
    loaded = problem = None
    for architecture in sorted(architectures):
        try:
            loaded = teachers.load(name, view_size, spec.precision, architecture=architecture)
            break
        except (TeacherError, UsageError) as error:
            problem = error
    if loaded is None:
        assert problem is not None
        raise problem
    same = [m for m in left if m.weights_sha256 == loaded.spec.weights_sha256]
    if not same:
        wanted = " or ".join(m.weights_sha256 for m in left)
        raise CacheMismatch(
            f"the teacher {name} has the weights {loaded.spec.weights_sha256}, that of the cache "
            f"{wanted}. Pass --teacher with the original weights."
        )
    class_map: ClassMap | None = None
    member = next((m for m in same if not m.class_map_sha256), None)
    if member is None:
        given = {c.sha256: c for c in (classes.load(path, loaded.model) for path in maps)}
        member = next((m for m in same if m.class_map_sha256 in given), None)
        if member is None:
            raise CacheMismatch(
                f"the teacher {same[0].name} used the class map {same[0].class_map_sha256}, and "
                f"{'another' if maps else 'none'} is given. Pass --class-map with the original "
                "file."
            )
        class_map = given[member.class_map_sha256]
    left.remove(member)
    as_then = replace(
        loaded.spec,
        mean=member.mean or spec.mean,
        std=member.std or spec.std,
        num_classes=spec.num_classes,
        class_map_sha256=member.class_map_sha256,
    )
    return Teacher(loaded.model, as_then, class_map), member
