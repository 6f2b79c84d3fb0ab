"""`benchmarks.start`: its sparse shards are laid out as real ones, and it runs."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import start
from cache_tools.data import tar_index


def test_the_layout_is_that_of_a_real_tar(tmp_path: Path) -> None:
    sizes = np.array([1, 511, 512, 513, 20_000, 7])
    with tarfile.open(tmp_path / "real.tar", "w") as tar:
        for number, size in enumerate(sizes.tolist()):
            for end, data in ((".cls", str(number).encode()), (".jpg", bytes(size))):
                member = tarfile.TarInfo(f"n{number:08d}/n{number:08d}_{number}{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with (tmp_path / "real.tar").open("rb") as file:
        index = tar_index.scan(file, "real.tar", checksums=False)
    offset_S, tar_bytes = start.layout(sizes)
    assert index.offset_N.tolist() == offset_S.tolist()
    assert index.length_N.tolist() == sizes.tolist()
    assert index.tar_bytes == tar_bytes
    assert set(index.lead_N.tolist()) == {start.LEAD}


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["crop", "a2"])
def test_a_short_form_runs(
    augmentation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--samples", "700", "--views", "2", "--classes", "1000", "--shards", "3"]
    words += ["--processes", "2", "--batch-size", "16", "--augmentation", augmentation]
    words += ["--folder", str(tmp_path), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["start", *words])
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "kept"))
    with pytest.raises(SystemExit):
        start.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["2 processes"]["stages"]) == list(found["one process"]["stages"])
    assert "first batch" in found["2 processes"]["stages"]
    assert found["passed"]["under 2 GB a process"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]  # all else is removed
