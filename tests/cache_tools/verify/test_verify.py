"""Files that are not of a cache, and stored pixels of a `.beton`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.cli import beton as command
from cache_tools.data.beton.records import DESCRIPTION, FIELDS, HEADER, METADATA, RAW
from cache_tools.data.open import open_images
from cache_tools.spec import sample_table
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def test_files_that_are_not_of_the_cache_are_named(mutable_cache: Path, kdcache: Command) -> None:
    for allowed in ("README.md", "targets/code/c/3/0.0123456789ab.partial"):
        (mutable_cache / allowed).write_text("for people, or being written")
    assert kdcache("verify", mutable_cache).code == 0
    foreign = ["commits/v0009/b0000.json", "notes.txt", "targets/code/c/3/99"]
    for name in foreign:
        (mutable_cache / name).parent.mkdir(exist_ok=True)
        (mutable_cache / name).write_text("x")
    said = kdcache("verify", mutable_cache, "--json")
    facts = json.loads(said.out)
    assert (said.code, facts["verdict"], facts["foreign"]) == (1, "mismatch", foreign)
    assert "notes.txt" in kdcache("verify", mutable_cache).out
    said = kdcache("verify", mutable_cache, "--repair")
    assert (said.code, (mutable_cache / "notes.txt").exists()) == (1, True)


@pytest.mark.parametrize("raw", [False, True])
def test_every_stored_byte_of_a_beton_is_compared(
    digits: Path, digits_cache: Path, tmp_path: Path, kdcache: Command, raw: bool
) -> None:
    out = tmp_path / "x.beton"
    written = command.write(open_images(str(digits), "train"), out, raw)
    assert kdcache("verify", digits_cache, "--data", out).code == 0
    whole, row = out.read_bytes(), written.rows_N[37]  # no probe
    assert row["mode"] == RAW
    damaged = bytearray(whole)
    damaged[int(row["ptr"]) + 5] ^= 1
    out.write_bytes(damaged)
    said = kdcache("verify", digits_cache, "--data", out)
    assert (said.code, repr(written.names[37]) in said.out) == (1, True)
    pixels = damaged[int(row["ptr"]) :][: int(row["size"])]
    begin = HEADER.itemsize + len(FIELDS) * DESCRIPTION.itemsize
    end = begin + len(written) * METADATA.itemsize
    metadata = np.frombuffer(damaged[begin:end], METADATA).copy()
    metadata["f5"][37] = np.uint64(sample_table.digest(pixels)).astype(np.int64)
    damaged[begin:end] = metadata.tobytes()
    out.write_bytes(damaged)  # other pixels with a digest of their own: --raw has nothing else
    said = kdcache("verify", digits_cache, "--data", out)
    assert (said.code, "other pixels of" in said.out) == ((0, False) if raw else (1, True))
