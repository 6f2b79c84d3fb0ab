"""Hostile parts: values that cannot be, and chunks that expand without end."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.store.cache import Cache
from tests.end_to_end.attacks import attacker
from tests.end_to_end.attacks.attacker import CODE, COUNT, DELTA, ITEMSIZES, PART, TAIL
from tests.end_to_end.attacks.victim import Outcome, Victim

Refused = Callable[..., str]
THE_PART = "view 1, block 0"


def test_the_honest_cache_is_read_and_sealing_it_changes_nothing(
    forged: Path, victim: Victim, truth: Outcome
) -> None:
    attacker.seal(forged)
    outcome = victim.open(forged)
    assert (outcome.targets, outcome.refusals) == (truth.targets, {})


def _changed(path: Path, name: str, index: int, value: int) -> None:
    values = getattr(Cache.open(path).read(PART)[0], name).copy()
    values[..., index] = value
    attacker.replace_part(path, **{name: values})


@pytest.mark.parametrize(
    ("name", "index", "value", "complaint"),
    [
        ("index_delta_E", 0, 60_000, "class id beyond 19"),
        ("index_delta_E", 1, 65_535, "class id beyond 19"),
        ("index_delta_E", 1, 0, "named twice"),
        ("code_E", 0, 0, "code outside"),
        ("code_E", 0, 255, "code outside"),
        ("code_E", 0, 128, "code outside"),
        ("count_B", 0, 0, ""),
        ("count_B", 0, 9, "classes"),
        ("count_B", 0, 65_535, ""),
        ("tail_TB", 0, 255, "fill value"),
        ("tail_TB", 0, 0, "without a tail"),
        ("true_PB", 0, 255, "fill value"),
        ("square_QB", 0, 255, "fill value"),
    ],
)
def test_impossible_values(
    forged: Path, refused: Refused, name: str, index: int, value: int, complaint: str
) -> None:
    _changed(forged, name, index, value)
    assert complaint in refused(forged, THE_PART)


def test_probabilities_that_sum_to_nothing(forged: Path, refused: Refused) -> None:
    stored = Cache.open(forged).read(PART)[0]
    attacker.replace_part(forged, code_E=np.zeros_like(stored.code_E))
    assert "a code outside" in refused(forged, THE_PART)


def test_entries_after_the_last(forged: Path, refused: Refused) -> None:
    stored = Cache.open(forged).read(PART)[0]
    more = [np.append(x, x[-1:]) for x in (stored.index_delta_E, stored.code_E)]
    attacker.replace_part(forged, index_delta_E=more[0], code_E=more[1])
    assert "do not end" in refused(forged, THE_PART)


@pytest.mark.parametrize("name", [CODE, COUNT, DELTA, TAIL])
def test_a_chunk_that_expands_without_measure(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).write_bytes(attacker.bomb(attacker.BOMB, 1, ITEMSIZES[name]))
    attacker.seal(forged)
    refused(forged, THE_PART, name)


@pytest.mark.parametrize("name", [CODE, COUNT, DELTA, TAIL])
def test_a_chunk_that_expands_a_little_too_far(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).write_bytes(attacker.bomb(2**20, 1, ITEMSIZES[name]))
    attacker.seal(forged)
    refused(forged, THE_PART)


@pytest.mark.parametrize("name", [CODE, COUNT, DELTA, TAIL])
def test_a_chunk_that_is_shorter_than_its_part(forged: Path, refused: Refused, name: str) -> None:
    (forged / name).write_bytes(attacker.array_bytes(np.ones(5, dtype=np.uint8)))
    attacker.seal(forged)
    refused(forged, THE_PART)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 20, b"\xff" * 400, b"kdcache" * 500])
def test_a_chunk_of_rubbish(forged: Path, refused: Refused, data: bytes) -> None:
    (forged / CODE).write_bytes(data)
    attacker.seal(forged)
    refused(forged, THE_PART)


@pytest.mark.parametrize("at", range(20))
def test_every_byte_of_a_frames_head_may_lie(forged: Path, refused: Refused, at: int) -> None:
    """The checksum over the frame is recomputed: blosc itself sees the lie."""
    frame = bytearray((forged / DELTA).read_bytes()[:-4])
    frame[at] ^= 0xFF
    (forged / DELTA).write_bytes(attacker.with_crc(bytes(frame)))
    attacker.seal(forged)
    refused(forged, THE_PART)


@pytest.mark.parametrize("claim", [2**31 - 1, 2**32 - 1, 0, None])
@pytest.mark.parametrize("start", [2**20, 2**30, 2**31 - 1, 2**32 - 1, 2**31])
def test_a_frame_that_points_out_of_itself(
    forged: Path, refused: Refused, start: int, claim: int | None
) -> None:
    """A frame that claims to be longer than its file has blosc read memory that is not its own."""
    frame = bytearray((forged / DELTA).read_bytes()[:-4])
    struct.pack_into("<II", frame, 12, len(frame) if claim is None else claim, start)
    (forged / DELTA).write_bytes(attacker.with_crc(bytes(frame)))
    attacker.seal(forged)
    refused(forged, THE_PART)


@pytest.mark.parametrize("seed", range(20))
def test_frames_of_random_damage_crash_nothing(forged: Path, victim: Victim, seed: int) -> None:
    """All digests hold, so other legal values may come out; but no crash and no strange error."""
    random_ = random.Random(seed)
    frame = bytearray((forged / CODE).read_bytes()[:-4])
    for _ in range(random_.randint(1, 4)):
        frame[random_.randrange(16, len(frame))] ^= 1 << random_.randrange(8)
    (forged / CODE).write_bytes(attacker.with_crc(bytes(frame)))
    attacker.seal(forged)
    outcome = victim.open(forged)
    assert not outcome.escaped, "\n".join(outcome.escaped.values())


def test_a_chunk_of_a_gigabyte(forged: Path, refused: Refused) -> None:
    """No chunk is larger than what it holds and a little: a sparse file costs nothing to send."""
    with (forged / CODE).open("wb") as file:
        file.truncate(2**30)
    attacker.edit(forged / PART.record, lambda r: _claim(r, CODE, 2**30))
    refused(forged, THE_PART, CODE)


def _claim(record: attacker.Json, name: str, size: int) -> None:
    record["chunks"][name].update(bytes=size, sha256=_ZEROS)
    attacker.reseal(record)


_ZEROS = "sha256:49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
"""Of 2^30 zero bytes."""
