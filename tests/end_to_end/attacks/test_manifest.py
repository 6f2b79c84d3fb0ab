"""Hostile manifests and records: absurd numbers, wrong types, strange text, paths."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_tools.store.cache import Cache
from cache_tools.store.layout import Layout
from tests.end_to_end.attacks import attacker
from tests.end_to_end.attacks.attacker import CODE, PART, Json
from tests.end_to_end.attacks.victim import MEMORY, Outcome, Victim

Refused = Callable[..., str]
Harmless = Callable[[Path], None]
INFINITE, LONG = "@1e400@", "@10^400@"
"""Stand for numbers that Python would not write."""
WRONG: list[Any] = [None, -1, INFINITE, LONG, "x", [], {}, True, 2**70, 0.5, float("nan")]
HUGE = [0, -1, 2**31, 2**40, 2**63, 2**64, 2**70]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "field",
    ["block_size", "targets__k_max", "targets__levels", "window", "dataset__num_samples",
     "views__size", "views__re_count", "views__pair_views", "teacher__num_classes"],
)  # fmt: skip
def test_absurd_numbers_in_the_spec(forged: Path, refused: Refused, field: str, value: int) -> None:
    attacker.edit_spec(forged, **{field: value})
    refused(forged, str(forged))


@pytest.mark.parametrize("value", [0, -1, 10**9, 2**40, 2**70, 10_001])
def test_absurd_numbers_of_views(forged: Path, refused: Refused, value: int) -> None:
    attacker.edit_manifest(forged, lambda m: m.update(num_views=value))
    assert "num_views" in refused(forged, "zarr.json")


def test_ten_billion_parts(forged: Path, refused: Refused) -> None:
    """Every number within its bounds, and a list of all parts would fill the memory."""
    attacker.edit_spec(forged, block_size=1, window=1, dataset__num_samples=2**20)
    attacker.edit_manifest(forged, lambda m: m.update(num_views=10_000))
    refused(forged, "zarr.json")


def test_the_largest_part_that_a_spec_allows(forged: Path, victim: Victim, truth: Outcome) -> None:
    """A few KB for half a gigabyte of entries: within the bounds of a spec, so it is decoded."""
    attacker.edit_spec(
        forged, block_size=2**20, window=2**16, targets__k_max=128, teacher__num_classes=70_000
    )
    chunks = {attacker.COUNT: (2**21, 1, 2), attacker.DELTA: (2**29, 1, 4), CODE: (2**27, 1, 1)}
    chunks |= {attacker.TAIL: (2**21, 5, 1), "targets/true/c/0/1/0": (2**21, 0, 1)}
    chunks |= {"targets/square/c/0/1/0": (2**20, 0, 1)}
    for name, (size, fill, itemsize) in chunks.items():
        (forged / name).write_bytes(attacker.bomb(size, fill, itemsize))
    for name, data in Layout(Cache.open(forged).spec, 2).metadata().items():
        (forged / name).write_bytes(data)
    attacker.edit(forged / PART.record, lambda record: record.update(rows=[0, attacker.ROWS]))
    attacker.seal(forged)
    outcome = victim.open(forged)
    assert not outcome.escaped, "\n".join(outcome.escaped.values())
    assert "view 1, block 0" in outcome.message
    assert "do not end" in outcome.message
    assert outcome.grown < MEMORY


@pytest.mark.parametrize("section", ["ninf", "n" + "9" * 400, "minf", "m" + "9" * 400])
def test_infinite_augmentations(forged: Path, refused: Refused, section: str) -> None:
    attacker.edit_spec(forged, views__auto_augment=f"rand-{section}")
    refused(forged, "auto_augment")


@pytest.mark.parametrize("version", ["2.0", "1.99", "99", "", "x", None, 2, 1e400, {}, ["1.0"]])
def test_versions_of_the_future(forged: Path, harmless: Harmless, version: Any) -> None:
    """A minor version may be read, or refused; what is none must be refused."""
    attacker.edit_manifest(forged, lambda m: m.update(format_version=version))
    harmless(forged)


def test_another_major_version_is_named(forged: Path, refused: Refused) -> None:
    attacker.edit_manifest(forged, lambda m: m.update(format_version="2.0"))
    assert "format version 2.0" in refused(forged, str(forged))


def test_a_field_of_the_future(forged: Path, refused: Refused) -> None:
    attacker.edit_spec(forged, views__gravity=9.81)
    refused(forged, "gravity")


PATHS = ["/etc/passwd", "../../../../etc/passwd", "targets/../../outside", "~/.ssh/id_rsa"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("instead", [True, False])
def test_paths_in_a_record(forged: Path, refused: Refused, name: str, instead: bool) -> None:
    def change(record: Json) -> None:
        chunk = record["chunks"].pop(CODE) if instead else dict(record["chunks"][CODE])
        record["chunks"][name] = chunk
        attacker.reseal(record)

    attacker.edit(forged / PART.record, change)
    refused(forged, PART.record)


def _written(path: Path, value: Any) -> None:
    text = json.dumps(value).replace(f'"{INFINITE}"', "1e400")
    path.write_text(text.replace(f'"{LONG}"', str(10**400)))


def _seal_long(value: Json) -> None:
    """Seal what holds numbers that stand for longer ones: as the reader will see them."""
    text = json.dumps(value).replace(f'"{LONG}"', str(10**400))
    if "NaN" not in text and INFINITE not in text:
        attacker.reseal(real := json.loads(text))
        value["sha256"] = real["sha256"]


def _fuzz(value: Json) -> list[tuple[tuple[Any, ...], Any]]:
    return [(path, wrong) for path in attacker.leaves(value) for wrong in WRONG]


def _complaint(outcome: Outcome, truth: Outcome, strict: bool) -> str | None:
    """What went wrong with one wrong value, or None."""
    if outcome.escaped:
        step, text = next(iter(outcome.escaped.items()))
        return f"{step}: {text.strip().splitlines()[-1]}"
    if not outcome.refusals and outcome.targets != truth.targets:
        return "other targets, silently"
    return "nobody refused it" if strict and not outcome.refusals else None


def test_wrong_types_in_every_field_of_the_manifest(
    forged: Path, victim: Victim, truth: Outcome
) -> None:
    """Refused, or read as before: a label that is no number of ours may say what it likes."""
    honest = attacker.load(forged / "zarr.json")
    complaints = []
    for path, wrong in _fuzz(honest["attributes"]["kdcache"]):
        group = copy.deepcopy(honest)
        manifest = group["attributes"]["kdcache"]
        attacker.put(manifest, path, wrong)
        if path[0] == "spec" and isinstance(manifest["spec"], dict):
            manifest["fingerprint"] = _fingerprint(manifest["spec"])
        if path != ("sha256",):
            _seal_long(manifest)
        _written(forged / "zarr.json", group)
        strict = path[0] != "spec"
        if complaint := _complaint(victim.open(forged), truth, strict):
            complaints.append(f"{path} = {wrong!r}: {complaint}")
    assert not complaints, "\n".join(complaints)


def _fingerprint(spec: Json) -> str:
    text = json.dumps(spec).replace(f'"{LONG}"', str(10**400))
    return attacker.sha256(attacker.canonical(json.loads(text)))


@pytest.mark.slow
def test_wrong_types_in_every_field_of_a_record(
    forged: Path, victim: Victim, truth: Outcome
) -> None:
    honest = attacker.load(forged / PART.record)
    complaints = []
    thin = {**honest, "chunks": {name: honest["chunks"][name] for name in (CODE, attacker.TAIL)}}
    for path, wrong in _fuzz(thin):
        record = copy.deepcopy(honest)
        attacker.put(record, path, wrong)
        if path != ("sha256",):
            _seal_long(record)
        _written(forged / PART.record, record)
        strict = path[0] in ("chunks", "fingerprint", "rows", "block", "sha256")
        if complaint := _complaint(victim.open(forged), truth, strict):
            complaints.append(f"{path} = {wrong!r}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", ["view", "chunks", "sha256", "statistics"])
def test_missing_fields_of_a_record(forged: Path, refused: Refused, name: str) -> None:
    def change(record: Json) -> None:
        record.pop(name)
        if name != "sha256":
            attacker.reseal(record)

    attacker.edit(forged / PART.record, change)
    refused(forged, PART.record)


@pytest.mark.parametrize("name", ["num_views", "spec", "sha256", "fingerprint"])
def test_missing_fields_of_the_manifest(forged: Path, refused: Refused, name: str) -> None:
    group = attacker.load(forged / "zarr.json")
    group["attributes"]["kdcache"].pop(name)
    if name != "sha256":
        attacker.reseal(group["attributes"]["kdcache"])
    (forged / "zarr.json").write_text(json.dumps(group))
    refused(forged, "zarr.json")


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "\ud800", "a\nb\rc", "\u202etxt"])
@pytest.mark.parametrize("field", ["teacher__name", "dataset__classes_sha256"])
def test_text_that_would_steer_a_terminal(
    forged: Path, victim: Victim, field: str, text: str
) -> None:
    """Refused, or printed so that it does nothing."""
    attacker.edit_spec(forged, **{field: text})
    outcome = victim.open(forged)
    assert not outcome.escaped, "\n".join(outcome.escaped.values())
    shown = outcome.printed + outcome.message
    assert text not in shown
    assert not any(c in shown for c in "\x1b\x07\r\u202e")


@pytest.mark.parametrize("place", ["format_version", "spec"])
def test_messages_do_not_repeat_what_steers_a_terminal(
    forged: Path, victim: Victim, place: str
) -> None:
    changes: dict[str, Any] = {
        "format_version": lambda m: m.update(format_version="9\x1b[2J"),
        "spec": lambda m: m["spec"].update({"\x1b[2J": 1}),
    }
    attacker.edit_manifest(forged, changes[place])
    outcome = victim.open(forged)
    assert outcome.refusals
    assert not outcome.escaped
    assert "\x1b" not in outcome.message
