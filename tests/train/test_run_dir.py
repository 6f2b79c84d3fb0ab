"""The folder of a run: one process at a time, and a refused start that blocks no other."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_tools.config import Kwargs
from cache_tools.errors import CacheDamaged, RunNotFound, UsageError
from tests.helpers.outcome import Outcome
from train import run_dir
from train.data.inputs import Inputs, open_inputs
from train.recipe import TrainRecipe

RECIPE = TrainRecipe("test_vit", epochs=1, batch_size=20)
Command = Callable[..., Outcome]


@pytest.fixture
def inputs(digits_cache: Path, digits: Path) -> Inputs:
    return open_inputs(digits_cache, str(digits))


def test_a_refused_start_does_not_block_the_corrected_one(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_dir.init_run(out, RECIPE, inputs, fresh=False)  # and then a check refuses
    corrected = replace(RECIPE, epochs=2)
    run_dir.init_run(out, corrected, inputs, fresh=False)
    assert run_dir.read_config(out)["recipe"]["epochs"] == 2
    (out / "log.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="another run"):
        run_dir.init_run(out, RECIPE, inputs, fresh=False)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "missing"])
def test_a_config_that_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    """The networks in a run have one, too, but are no runs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text("{}\n")
    config = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(config)
    elif kind == "folder":
        config.mkdir()
    elif kind == "link":
        config.symlink_to("nowhere")
    with pytest.raises(RunNotFound, match=r"/config.json is (no file|missing)\. Restore it"):
        run_dir.read_config(tmp_path)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (
            {"opt_kwargs": Kwargs(eps=1e-6, betas=[0.9, 0.95])},
            r"opt_kwargs\.eps: 1e-08 against 1e-06",
        ),
        ({"student_kwargs": Kwargs(img_size=32)}, r"student_kwargs\.img_size: None against 32"),
        ({"grad_checkpointing": True}, "grad_checkpointing: False against True"),
        ({"model_ema_warmup": True, "model_ema_decay": 0.9}, "model_ema_decay: 0.0 against 0.9"),
        ({"task_loss": "bce", "bce_target_thresh": 0.2}, r"bce_target_thresh: -1.0 against 0.2"),
    ],
)
def test_a_changed_key_is_another_run(
    inputs: Inputs, tmp_path: Path, changed: dict[str, Any], found: str
) -> None:
    first = replace(RECIPE, opt_kwargs=Kwargs(eps=1e-8, betas=[0.9, 0.95]))
    run_dir.init_run(tmp_path, first, inputs, fresh=False)
    (tmp_path / "log.jsonl").write_text("{}\n")
    run_dir.init_run(tmp_path, first, inputs, fresh=False)
    with pytest.raises(UsageError, match=found):
        run_dir.init_run(tmp_path, replace(first, **changed), inputs, fresh=False)


def test_a_run_from_before_a_key_goes_on(inputs: Inputs, tmp_path: Path) -> None:
    run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)
    config = run_dir.read_config(tmp_path)
    del config["recipe"]["opt_kwargs"], config["recipe"]["model_ema_warmup"]
    run_dir.write_json(tmp_path / "config.json", config)
    (tmp_path / "log.jsonl").write_text("{}\n")
    run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)
    with pytest.raises(UsageError, match="opt_kwargs"):
        run_dir.init_run(tmp_path, replace(RECIPE, opt_kwargs=Kwargs(eps=1e-6)), inputs, False)


def test_a_run_goes_on_with_its_views_after_some_were_added(
    mutable_cache: Path, digits: Path, tmp_path: Path
) -> None:
    out, every = tmp_path / "run", open_inputs(mutable_cache, str(digits))
    run_dir.init_run(out, RECIPE, every, fresh=False)
    (out / "log.jsonl").write_text("{}\n")
    run_dir.init_run(out, replace(RECIPE, num_views=4), every, fresh=False)
    run_dir.init_run(out, RECIPE, every, fresh=False)
    every.store.resize(8)
    grown = open_inputs(mutable_cache, str(digits))
    with pytest.raises(UsageError, match=r"num_views: 4 against 8 now\. Pass num_views=4 for"):
        run_dir.init_run(out, RECIPE, grown, fresh=False)
    with pytest.raises(UsageError, match=r"num_views: 4 against 8 now\. Choose another --out"):
        run_dir.init_run(out, replace(RECIPE, epochs=2), grown, fresh=False)
    run_dir.init_run(out, replace(RECIPE, num_views=4), grown, fresh=False)
    assert run_dir.read_config(out)["num_views"] == 4


def test_other_samples_of_equal_number_are_another_run(
    inputs: Inputs, digits: Path, tmp_path: Path
) -> None:
    """A run of kdcache 0.1 has their number alone."""

    def without(row: int) -> Inputs:
        index_N = inputs.coverage.image_index_N.copy()
        index_N[row] = -1
        return replace(inputs, coverage=replace(inputs.coverage, image_index_N=index_N))

    run_dir.init_run(tmp_path, RECIPE, without(3), fresh=False)
    (tmp_path / "log.jsonl").write_text("{}\n")
    run_dir.init_run(tmp_path, RECIPE, without(3), fresh=False)
    with pytest.raises(UsageError, match="another run: present: 'sha256:"):
        run_dir.init_run(tmp_path, RECIPE, without(4), fresh=False)
    config = run_dir.read_config(tmp_path)
    del config["coverage"]["samples_present"]
    run_dir.write_json(tmp_path / "config.json", config)
    run_dir.init_run(tmp_path, RECIPE, without(3), fresh=False)
    with pytest.raises(UsageError, match="missing: 1 against 0"):
        run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_process_is_refused(inputs: Inputs, tmp_path: Path, fresh: bool) -> None:
    out = tmp_path / "run"
    run_dir.init_run(out, RECIPE, inputs, fresh=False)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with run_dir.hold(out), pytest.raises(UsageError, match=f"in use by.*{holder}"):
        run_dir.init_run(out, RECIPE, inputs, fresh)
    run_dir.init_run(out, RECIPE, inputs, fresh)


def test_the_command_that_is_second_names_the_first(
    kdcache: Command, digits_cache: Path, digits: Path, tmp_path: Path
) -> None:
    words = ["train", "digits", "--cache", digits_cache, "--data", digits, "--out", tmp_path]
    (tmp_path / "run.lock").touch()
    with run_dir.hold(tmp_path):
        done = kdcache(*words, "epochs=1", "student=test_vit", "views_per_epoch=2", "num_views=4")
    assert done.code == 2
    assert f"process {os.getpid()}" in done.err


@pytest.mark.parametrize("content", ["{}", '{"recipe": {}}', '{"architecture": "test_vit"}'])
def test_a_config_of_no_run_is_named(inputs: Inputs, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        CacheDamaged, match=r"config\.json is no file .* (it lacks|missing).* --fresh"
    ):
        run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)


def test_fresh_empties_a_linked_folder(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    out = tmp_path / "link"
    run_dir.init_run(out, RECIPE, inputs, fresh=False)
    (out / "log.jsonl").write_text("{}\n")
    run_dir.init_run(out, replace(RECIPE, epochs=2), inputs, fresh=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "digests.json",
        "run.lock",
    ]


@pytest.mark.parametrize("damage", ["missing", "damaged", "foreign"])
def test_a_rerun_mends_the_config(inputs: Inputs, tmp_path: Path, damage: str) -> None:
    run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)
    (tmp_path / "log.jsonl").write_text("{}\n")
    path = tmp_path / "config.json"
    before = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(before[:-9] if damage == "damaged" else b'{"recipe": {}}')
    run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)
    assert path.read_bytes() == before
    assert (tmp_path / "log.jsonl").exists()


def test_a_run_without_config_is_not_gone_on_with_by_another_recipe(
    inputs: Inputs, tmp_path: Path
) -> None:
    run_dir.init_run(tmp_path, RECIPE, inputs, fresh=False)
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "config.json").unlink()
    other = replace(RECIPE, epochs=2)
    with pytest.raises(UsageError, match=r"config\.json is missing.*--fresh"):
        run_dir.init_run(tmp_path, other, inputs, fresh=False)
    assert (tmp_path / "log.jsonl").exists()
    run_dir.init_run(tmp_path, other, inputs, fresh=True)
    assert run_dir.read_config(tmp_path)["recipe"]["epochs"] == 2
    assert not (tmp_path / "log.jsonl").exists()


def test_a_folder_of_others_is_never_cleared(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run_dir.write_json(tmp_path / "sweep.json", {})  # a sweep's: it has digests, too
    with pytest.raises(UsageError, match="holds no run"):
        run_dir.init_run(tmp_path, RECIPE, inputs, fresh=True)
    assert (tmp_path / "notes.txt").exists()


def test_a_name_that_is_not_utf_8_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    """Networks could be written below it, and not opened."""
    with pytest.raises(UsageError, match=r"no name in UTF-8.* --out"):
        run_dir.init_run(Path(os.fsdecode(b"caf\xe9")), RECIPE, inputs, fresh=False)
