"""The examples with the real packages: as accurate as `kdcache train`, resumed after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from safetensors.torch import load_file

from tests.helpers.outcome import Outcome
from tests.helpers.paths import ROOT
from tests.helpers.stage1 import KDCACHE

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = [path.stem for path in EXAMPLES]
SEEDS = range(3)
Command = Callable[..., Outcome]


def example(
    name: str,
    where: tuple[Path, Path],
    out: Path,
    *options: object,
    kill_at: int = -1,
    kill_in: str = "",
) -> list[str]:
    """Run an example; the digests of its batches."""
    record = out.with_suffix(".batches")
    record.unlink(missing_ok=True)
    words = ["tests/examples/record.py", record, kill_at, f"examples/{name}.py", *where, out]
    done = subprocess.run(
        [sys.executable, *map(str, [*words, *options])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "KILL_IN": kill_in},
        capture_output=True,
        text=True,
        check=False,
    )
    killed = kill_at >= 0 or kill_in
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-3000:]
    return record.read_text().split()


def test_each_example_is_short_named_in_the_page_and_its_packages_are_in_the_extra() -> None:
    page = (ROOT / "examples/README.md").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {re.split(r"[>\[]", package)[0] for package in extras["examples"]}
    assert named == {"accelerate", "lightning", "kdcache"}
    assert "kdcache[examples]" in extras["dev"]
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert 30 <= len(path.read_text("utf-8").splitlines()) <= 70, path.name
        assert f"[{path.name}]({path.name})" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_in_an_epoch_it_goes_on_with_the_batches_not_seen(
    digits_demo: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """15 batches an epoch, a checkpoint every 5: killed at 23, it goes on behind 20."""
    whole = example(name, digits_demo, tmp_path / "whole", "--epochs", 2)
    assert len(whole) == len(set(whole)) == 30
    killed = example(name, digits_demo, tmp_path / "killed", "--epochs", 2, kill_at=23)
    assert killed == whole[:23]
    assert example(name, digits_demo, tmp_path / "killed", "--epochs", 2) == whole[20:]
    ends = [load_file(tmp_path / end / "model/model.safetensors") for end in ("whole", "killed")]
    assert all(value.equal(ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place", "begin"),
    [
        ("plain_pytorch", "pathlib:Path.replace:3", 10),
        ("timm_blocks", "pathlib:Path.replace:3", 10),
        ("accelerate_loop", "accelerate.accelerator:save_custom_state:5", 10),
        ("accelerate_loop", "pathlib:Path.rename:3", 10),
        ("accelerate_loop", "shutil:rmtree:2", 15),
        ("lightning_module", "shutil:move:3", 10),
        ("huggingface_trainer", "transformers:Trainer._save_optimizer_and_scheduler:3", 10),
        ("huggingface_trainer", "transformers:TrainerState.save_to_json:3", 10),
        ("huggingface_trainer", "shutil:rmtree:1", 15),
    ],
)
def test_killed_in_a_checkpoint_it_goes_on_from_one_that_is_whole(
    digits_demo: tuple[Path, Path], tmp_path: Path, name: str, place: str, begin: int
) -> None:
    """Checkpoints behind 5, 10 and 15 batches: half of the third, or of an older one's removal."""
    whole = example(name, digits_demo, tmp_path / "whole", "--epochs", 2)
    killed = example(name, digits_demo, tmp_path / "killed", "--epochs", 2, kill_in=place)
    assert killed == whole[:15]
    assert example(name, digits_demo, tmp_path / "killed", "--epochs", 2) == whole[begin:]
    ends = [load_file(tmp_path / end / "model/model.safetensors") for end in ("whole", "killed")]
    assert all(value.equal(ends[1][key]) for key, value in ends[0].items())


@pytest.fixture(scope="module")
def trained(digits_demo: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Students of `kdcache train`, of three seeds."""
    out = tmp_path_factory.mktemp("trained") / "run"
    cache, data = digits_demo
    words = ["train", "digits", "--cache", cache, "--data", data, "--out", out, "--seeds", 3]
    subprocess.run([KDCACHE, *map(str, words)], check=True)
    return [out / f"kd-seed{seed}" / "model" for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_accurate_as_kdcache_train(
    digits_demo: tuple[Path, Path],
    trained: list[Path],
    kdcache: Command,
    tmp_path: Path,
    name: str,
) -> None:
    def top1(folder: Path) -> float:
        words = ["--size", 32, "--crop", 1.0, "--views", 0, "--json"]
        done = kdcache("eval", folder, "--data", digits_demo[1], *words)
        assert done.code == 0, done.err
        return float(json.loads(done.out)["top1"])

    for seed in SEEDS:
        example(name, digits_demo, tmp_path / str(seed), "--seed", seed)
    ours = [top1(folder) for folder in trained]
    theirs = [top1(tmp_path / str(seed) / "model") for seed in SEEDS]
    spread = max(max(ours) - min(ours), max(theirs) - min(theirs), 1.0)
    assert abs(fmean(ours) - fmean(theirs)) <= spread, (ours, theirs)
