"""What a user's mistake looks like: one paragraph, the next step, an exit code, no traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from cache_tools.cli import main
from tests.helpers.outcome import Outcome
from tests.helpers.paths import ROOT

Command = Callable[..., Outcome]


def fails(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    message = outcome.err.strip().splitlines()[-1]
    for word in words:
        assert word in message


def test_wrong_data_set(kdcache: Command, digits_cache: Path, digits: Path, tmp_path: Path) -> None:
    wrong = digits / "digits-validation-0000.tar"
    run = kdcache(
        "train", "digits", "--cache", digits_cache, "--data", wrong, "--out", tmp_path / "r"
    )
    fails(
        run,
        1,
        "CacheMismatch",
        "100 samples",
        "500",
        "first missing key",
        "or make a cache of this one",
    )
    verify = kdcache("verify", digits_cache, "--data", wrong)
    assert verify.code == 1
    assert "first missing key" in verify.out


def test_wrong_number_of_classes(kdcache: Command, digits: Path, tmp_path: Path) -> None:
    arguments = ("--data", digits, "--teacher", "test_resnet", "--random-weights")
    outcome = kdcache("cache", "digits", *arguments, "--out", tmp_path / "c")
    fails(outcome, 1, "CacheMismatch", "10 classes", "1000", "labels=ignore")


def test_unknown_recipe_key(kdcache: Command, digits_cache: Path, tmp_path: Path) -> None:
    outcome = kdcache(
        "train", "digits", "--cache", digits_cache, "--out", tmp_path / "r", "epoch=3"
    )
    fails(outcome, 2, "RecipeError", "unknown key 'epoch'", "Did you mean 'epochs'")


def test_missing_cache(kdcache: Command, tmp_path: Path) -> None:
    for arguments in (
        ("train", "digits", "--cache", tmp_path / "none", "--out", tmp_path / "r"),
        ("verify", tmp_path / "none"),
        ("info", tmp_path / "none"),
        ("status", tmp_path / "none"),
    ):
        fails(kdcache(*arguments), 2, "CacheNotFound", "no cache at", "kdcache cache RECIPE")


def test_unknown_student(kdcache: Command, digits_cache: Path, tmp_path: Path) -> None:
    arguments = ("--cache", digits_cache, "--out", tmp_path / "r", "student=resnet5o")
    outcome = kdcache("train", "digits", *arguments)
    fails(outcome, 2, "UsageError", "no network 'resnet5o'", "timm.list_models()")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("key", "known"), [("opt", "adamw"), ("sched", "cosine")])
def test_unknown_optimizer_or_schedule(
    kdcache: Command, digits_cache: Path, tmp_path: Path, key: str, known: str
) -> None:
    arguments = ("--cache", digits_cache, "--out", tmp_path / "r", f"{key}=hope")
    fails(kdcache("train", "digits", *arguments), 2, f"{key}=hope cannot be used", known)


def test_missing_run(kdcache: Command, tmp_path: Path) -> None:
    fails(kdcache("eval", tmp_path), 2, "no run at", "kdcache train RECIPE")


def test_a_folder_of_runs_names_them(kdcache: Command, tmp_path: Path) -> None:
    for name in ("kd-seed0", "kd-seed1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for command in (("eval", tmp_path), ("export", tmp_path, "--out", tmp_path / "x")):
        fails(kdcache(*command), 2, "RunNotFound", "kd-seed0, kd-seed1", str(tmp_path / "kd-seed0"))


def test_an_empty_folder_is_answered_with_the_layouts(kdcache: Command, tmp_path: Path) -> None:
    fails(kdcache("plan", "photos", "--data", tmp_path), 1, "no image in", "WebDataset tars")


def test_more_views_than_the_cache_has(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    command = ("train", "digits", "--cache", digits_cache, "--out", tmp_path / "r")
    fails(kdcache(*command, "views_per_epoch=50"), 2, "views_per_epoch=4 or less", "num_views=50")


def test_our_own_teacher_is_suggested(kdcache: Command, digits: Path, tmp_path: Path) -> None:
    arguments = ("cache", "digits", "--data", digits, "--out", tmp_path / "c", "--teacher")
    fails(kdcache(*arguments, "lite0-imagnet"), 2, "Did you mean lite0-imagenet?")
    fails(kdcache(*arguments, "torchvison:resnet50"), 2, "Did you mean torchvision:resnet50 ")


def test_no_data_and_no_teacher(kdcache: Command, digits: Path, tmp_path: Path) -> None:
    fails(
        kdcache("cache", "digits", "--out", tmp_path / "c"), 2, "no images are given. Pass --data"
    )
    outcome = kdcache("cache", "digits", "--data", digits, "--out", tmp_path / "c")
    fails(outcome, 2, "no teacher is named. Pass --teacher")
    named = ("--data", tmp_path / "x", "--teacher", "y", "--out", tmp_path / "c")
    wrong = kdcache("cache", "digits", *named)
    fails(wrong, 2, "no data set at")


def test_wrong_share(kdcache: Command, digits: Path, teacher: Path, tmp_path: Path) -> None:
    arguments = ("--data", digits, "--teacher", teacher, "--out", tmp_path / "c")
    fails(kdcache("cache", "digits", *arguments, "--parts", "0/8"), 2, "0-3,7", "--task")


def test_an_unknown_option_or_command(kdcache: Command) -> None:
    assert kdcache("verify", "x", "--dta", "y").code == 2
    assert kdcache("chache").code == 2


def test_a_broken_image_is_named(kdcache: Command, teacher: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "n01440764_10026.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    arguments = ("--data", data, "--teacher", teacher, "--out", tmp_path / "c")
    outcome = kdcache("cache", "digits", *arguments, "dataset.labels=ignore")
    fails(outcome, 1, "--skip-broken")
    assert "DataError: 1 of the first 1 images" in outcome.err
    assert "n01440764_10026" in outcome.err


def test_all_broken_images_are_named_before_the_teacher_runs(
    kdcache: Command, teacher: Path, tmp_path: Path
) -> None:
    """Their headers are whole: only who decodes them notices."""
    data, random = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for number in range(14):
        whole = simplejpeg.encode_jpeg(random.integers(0, 256, (40, 60, 3), np.uint8))
        (data / f"{number}.jpg").write_bytes(whole if number < 2 else whole[:-200])
    arguments = ("--data", data, "--teacher", teacher, "--out", tmp_path / "c")
    outcome = kdcache("cache", "digits", *arguments, "dataset.labels=ignore")
    fails(outcome, 1, f"kdcache shard {data} DST --skip-broken")
    assert "12 of the first 14 images" in outcome.err
    assert "and 2 more" in outcome.err
    assert not (tmp_path / "c").exists()
    without = tmp_path / "without"
    assert kdcache("shard", data, without, "--skip-broken").code == 0
    arguments = ("--data", without, "--teacher", teacher, "--out", tmp_path / "c")
    assert kdcache("cache", "digits", *arguments, "dataset.labels=ignore", "num_views=1").code == 0


def test_incomplete(kdcache: Command, mutable_cache: Path) -> None:
    (mutable_cache / "commits/v0002/b0000.json").unlink()
    status = kdcache("status", mutable_cache)
    assert status.code == 1
    assert "3 of 4 parts" in status.out
    assert "view 2, block 0" in status.err
    facts = json.loads(kdcache("status", mutable_cache, "--json").out)
    assert facts["missing"] == [{"view": 2, "block": 0}]
    verdict = json.loads(kdcache("verify", mutable_cache, "--json").out)
    assert verdict["problems"][0]["kind"] == "CacheIncomplete"


def test_a_flipped_byte(kdcache: Command, mutable_cache: Path, tmp_path: Path) -> None:
    chunk = mutable_cache / "targets/index_delta/c/1/0"
    data = bytearray(chunk.read_bytes())
    data[20] ^= 4
    chunk.write_bytes(data)
    verify = kdcache("verify", mutable_cache)
    assert verify.code == 1
    assert str(chunk) in verify.out
    assert "kdcache cache" in verify.out
    run = kdcache(
        "train", "digits", "--cache", mutable_cache, "--out", tmp_path / "r", "batch_size=50"
    )
    fails(run, 1, "CacheDamaged", str(chunk), "kdcache cache")


def test_facts_are_printed_for_people_and_programs(kdcache: Command, digits_cache: Path) -> None:
    info = json.loads(kdcache("info", digits_cache, "--json").out)
    assert info["targets"] == 400
    assert info["bytes_per_view"] < 15
    assert info["spec"]["teacher"]["architecture"] == "test_resnet"
    people = kdcache("info", digits_cache).out
    assert info["fingerprint"] in people
    assert "test_resnet" in people
    plan = json.loads(kdcache("plan", "vanillakd-a2", "--json").out)
    assert plan["parts"] == 6000
    assert "384,350,100" in kdcache("plan", "vanillakd-a2").out
    assert json.loads(kdcache("verify", digits_cache, "--json").out)["verdict"] == "ok"
    assert kdcache("status", digits_cache).code == 0


def test_every_command_has_its_line_of_help_and_its_place_in_the_documentation() -> None:
    ours = {e.name for e in entry_points(group="kdcache.commands")}
    assert ours == set(main.HELP)
    pages = "".join(page.read_text("utf-8") for page in ROOT.glob("docs/**/*.md"))
    assert all(f"kdcache {name}" in pages for name in ours)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['kdcache', '--help']\n"
        "from cache_tools.cli import main as cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'zarr', 'numba', 'cv2', 'timm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "kdcache" in result.stdout


def test_a_strangers_train_py_does_not_shadow_ours(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('months of GPU time, gone')")
    command = [
        sys.executable,
        "-c",
        "from cache_tools.cli import main as cli; cli.main()",
        "train",
        "digits",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert str(tmp_path / "train.py") in result.stderr
    assert "gone" not in result.stdout


@pytest.mark.parametrize("debug", [False, True])
def test_tracebacks_appear_on_request(tmp_path: Path, debug: bool) -> None:
    command = [str(Path(sys.executable).parent / "kdcache"), "info", str(tmp_path / "none")]
    env = {"PATH": "/usr/bin"} | ({"KDCACHE_DEBUG": "1"} if debug else {})
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert ("Traceback" in result.stderr) is debug


def test_the_version_needs_no_command(kdcache: Command) -> None:
    result = kdcache("--version")
    assert result.code == 0
    assert re.fullmatch(r"kdcache \S+\n", result.out)


def test_the_last_data_cache_counts_and_needs_a_folder(
    digits_cache: Path, tmp_path: Path, kdcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", "")
    options = ("--data-cache", tmp_path / "a", f"--data-cache={tmp_path / 'b'}")
    assert kdcache("info", digits_cache, *options).code == 0
    assert os.environ["KDCACHE_CACHE"] == str(tmp_path / "b")
    refused = kdcache("info", digits_cache, "--data-cache")
    assert (refused.code, "requires an argument" in refused.err) == (2, True), refused.err


@pytest.mark.parametrize("before", [True, False])
def test_data_cache_is_a_global_option(
    before: bool,
    digits_cache: Path,
    tmp_path: Path,
    kdcache: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KDCACHE_CACHE", "")
    option = ("--data-cache", tmp_path / "kept")
    words = ("info", digits_cache)
    assert kdcache(*option, *words).code == 0 if before else kdcache(*words, *option).code == 0
    assert os.environ["KDCACHE_CACHE"] == str(tmp_path / "kept")
