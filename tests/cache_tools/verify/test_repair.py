"""`verify --repair`: from the cache itself, its images, or a copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
DAMAGED = {
    "itself": ["targets/code/zarr.json", "commits/zarr.json", "samples/label/zarr.json"],
    "--data": ["samples/key/zarr.json", "samples/id/c/0", "targets/zarr.json"],
    "--from": ["zarr.json", "samples/key/c/0", "commits/v0002/b0000.json", "targets/tail/c/0/1/0"],
}


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.mark.parametrize("of", DAMAGED)
def test_what_can_be_mended_is(
    of: str, digits_cache: Path, mutable_cache: Path, digits: Path, kdcache: Command
) -> None:
    for number, name in enumerate(DAMAGED[of]):
        path = mutable_cache / name
        path.write_bytes(path.read_bytes()[:-9] + b"damaged..") if number % 2 else path.unlink()
    words = {"itself": (), "--data": ("--data", digits), "--from": ("--from", digits_cache)}[of]
    assert kdcache("verify", mutable_cache).code != 0
    said = kdcache("verify", mutable_cache, "--repair", *words)
    assert said.code == 0, said.out + said.err
    assert files(mutable_cache) == files(digits_cache)
    assert said.out.count("mended: ") == len(DAMAGED[of])
    facts = json.loads(kdcache("verify", mutable_cache, "--repair", *words, "--json").out)
    assert (facts["verdict"], facts["mended"]) == ("ok", [])


def test_what_cannot_be_mended_is_named(
    mutable_cache: Path, sibling_cache: Path, tmp_path: Path, kdcache: Command
) -> None:
    (mutable_cache / "targets/code/c/1/0").unlink()
    (mutable_cache / "samples/id/c/0").write_bytes(b"")
    (mutable_cache / "targets/code/zarr.json").unlink()
    said = kdcache("verify", mutable_cache, "--repair")
    assert said.code == 1
    assert "mended: targets/code/zarr.json" in said.out
    assert "samples/id/c/0 cannot hold" in said.out
    said = kdcache("verify", mutable_cache, "--repair", "--from", sibling_cache)
    assert (said.code, "is another cache than" in said.err) == (1, True)
    assert kdcache("verify", mutable_cache, "--from", sibling_cache).code == 2
    shutil.rmtree(mutable_cache)
    assert kdcache("verify", mutable_cache, "--repair", "--from", sibling_cache).code == 2
    assert not mutable_cache.exists()
