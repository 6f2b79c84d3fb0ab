"""One run: its folder, its identity, its result.

    RUN/config.json      resolved recipe, cache, data, fingerprint: what `eval` and a rerun go by
    RUN/log.jsonl        a row of metrics per epoch; steps.jsonl, tensorboard/: see `trainer.log`
    RUN/checkpoint.pt    where to go on; removed when the run is finished
    RUN/model/           the student as timm saves it: timm.create_model("local-dir:RUN/model")
    RUN/model-ema/       its moving average, when the recipe has one
    RUN/run.lock         held while it is trained, with process and host
    RUN/result.json      written last: the run is finished when this exists
    RUN/digests.json     SHA-256 of the files above (`cache_tools.storage.seal`)

Running the same command again goes on, or finds the run finished. Another recipe or cache in the
same folder is refused unless `--fresh` replaces it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache_tools.config import canonical
from cache_tools.data.open import resolve
from cache_tools.errors import CacheDamaged, RunNotFound, UsageError
from cache_tools.file_contents import parse_json, read, read_text
from cache_tools.runtime.secrets import redact
from cache_tools.spec.canonical import difference
from cache_tools.storage import atomic, seal
from train import run_schema, run_state
from train.data.inputs import Inputs
from train.recipe import FOLLOW, TrainRecipe

LOCK = "run.lock"
LOGS = ("log.jsonl", "steps.jsonl")
"""Files of rows, whose digests are stored at every checkpoint and at the end."""
_NAMED = 12
"""Runs of a folder that a message names."""
_LAYOUT = 2
"""Version of the layout of repeated views in batches (`train.data.schedule`); 1: not recorded."""
_FREE = ("threads", "loader", "checkpoint_minutes", "cache_recipe", "min_views", *FOLLOW)
"""Keys that change no student."""
_NOT_COMPARED = ("num_views", *_FREE)
"""Keys that identify no run: of `num_views` it is the number of views shown."""


def init_run(
    folder: Path, recipe: TrainRecipe, inputs: Inputs, fresh: bool
) -> dict[str, Any] | None:
    """Prepare the folder of a run; return its result when it is finished already.

    Raises:
        UsageError: The folder holds another run.
        CacheDamaged: The run is finished, and a file of it has changed since or is missing.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # safetensors could not open what is trained
        raise UsageError(
            f"{str(folder)!r} is no name in UTF-8, as networks need it. Choose another --out."
        ) from None
    config = _config(recipe, inputs)
    atomic.sweep(folder)
    if (folder / "config.json").is_file() or seal.lists(folder, "config.json"):
        with hold(folder):
            try:
                if not fresh and not seal.lists(folder, "config.json", _text(config)):
                    _refuse_other(folder, config)
            except UsageError:
                if _has_begun(folder):
                    raise
                fresh = True  # it was refused before its first step, and blocks no other
            if fresh:
                atomic.clear(folder, LOCK)
    elif folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {LOCK}):
        raise UsageError(
            f"{folder} is not empty and holds no run (no config.json). Choose another --out."
        )
    write_json(folder / "config.json", config)
    run_state.check_result(folder)
    if not (folder / "result.json").is_file():
        return None
    check_finished(folder)
    return read_json(folder / "result.json")


def check_finished(folder: Path) -> None:
    """Compare what a finished run consists of with its digests; CacheDamaged names the file."""
    seal.check_all(folder, "model", "result.json", "need.json", *LOGS)


@contextmanager
def hold(*folders: Path) -> Iterator[None]:
    """Hold runs while the body lasts; UsageError, with process and host, where another does."""
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(atomic.held(folder / LOCK, str(folder)))
        yield


def _has_begun(folder: Path) -> bool:
    """Check if a run has made anything: an epoch, a checkpoint, a result."""
    names = ("checkpoint*.pt", "log.jsonl", "result.json", "failed.json", "stopped.json")
    return any(path.stat().st_size for name in names for path in folder.glob(name))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of a run; RunNotFound when there is none."""
    if not (config_file := folder / "config.json").is_file():
        if (there := os.path.lexists(config_file)) or _has_begun(folder):
            what = "no file" if there else "missing"
            raise RunNotFound(
                f"there is no run at {folder}: {config_file} is {what}. Restore it from a "
                "copy, or make the run again with --fresh."
            )
        several = sorted(path.parent for path in folder.glob("*/config.json"))
        several.sort(key=lambda run: not (run / "result.json").is_file())  # unfinished runs last
        if not several:
            raise RunNotFound(
                f"there is no run at {folder}. Make one with: kdcache train RECIPE --cache CACHE "
                f"--out {folder}"
            )
        names = ", ".join(run.name for run in several[:_NAMED]) + ", …" * (len(several) > _NAMED)
        raise RunNotFound(
            f"there is no run at {folder}: it is a folder of runs or networks "
            f"({names}). Pass one of them, such as {several[0]}."
        )
    config = read_json(folder / "config.json")
    if "recipe" not in config:  # of a network: its folder is measured and exported, too
        return config
    # of an earlier kdcache: former names, and keys that it did not have are at their defaults
    recipe = canonical(config["recipe"], TrainRecipe.ALIASES, str(folder / "config.json"))
    config["recipe"] = {**asdict(TrainRecipe(student="", epochs=1)), **recipe}
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run, and check its digest and what it must contain.

    Raises:
        CacheDamaged: It has changed since it was written.
        UsageError: It cannot be read, or is another file than a run's.
    """
    seal.check(path.parent, path.name)
    try:
        value: Any = parse_json(read(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}). Pass --fresh to begin anew.") from None
    run_schema.check(path, value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs, and its digest (`seal`)."""
    seal.write(path.parent, path.name, _text(value))


def _text(value: Any) -> bytes:
    return f"{redact(json.dumps(value, indent=2))}\n".encode()


def accuracies(folder: Path) -> dict[str, dict[str, float | None]]:
    """Read top-1 and top-5, in percent, of all weights of a finished run, by folder name."""
    seal.check(folder, "log.jsonl")
    rows = _rows(folder / "log.jsonl")
    found = {"model": _accuracy(rows[-1], ""), "model-ema": _accuracy(rows[-1], "_ema")}
    both = [_accuracy(row, ema) for row in rows for ema in ("", "_ema")]
    measured = [one for one in both if one["top1"] is not None]
    if measured:  # the first of the highest: max takes it, and so did the loop
        found["model-best"] = max(measured, key=lambda one: one["top1"] or 0.0)
    return {name: found[name] for name in found if (folder / name).is_dir()}


def _rows(path: Path) -> list[dict[str, float]]:
    """Read the epochs of a finished run's log."""
    try:
        rows = [parse_json(line) for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}). Restore it from a copy.") from None
    numbers = (int, float, type(None))
    plain = (
        isinstance(row, dict) and all(isinstance(value, numbers) for value in row.values())
        for row in rows
    )
    if not rows or not all(plain):
        raise UsageError(f"{path} is no log of a run. Restore it from a copy.")
    return rows


def _accuracy(row: dict[str, float], suffix: str) -> dict[str, float | None]:
    return {name: row.get(f"{name}{suffix}") for name in ("top1", "top5")}


def _config(recipe: TrainRecipe, inputs: Inputs) -> dict[str, Any]:
    spec = inputs.store.spec
    paths = [resolve(store.location) for store in inputs.members.caches]
    config: dict[str, Any] = {
        "recipe": asdict(recipe),
        "cache_fingerprint": inputs.fingerprint,
        "num_views": inputs.num_views(recipe),
        "layout": _LAYOUT,
        "view_size": recipe.train_size(spec.views.size),
        "eval_size": recipe.measured_size(spec.views.size),
        "cache": paths[0],
        "data": resolve(inputs.source),
        "teacher": asdict(spec.teacher),
        "views": asdict(spec.views),
        "samples": inputs.coverage.found,
        "class_names": list(inputs.images.class_names) if spec.dataset.labels else [],
        "validation_images": len(inputs.validation) if inputs.validation is not None else 0,
    }
    if inputs.coverage.missing:
        config["coverage"] = {**inputs.coverage.facts, "samples_present": inputs.samples}
    if len(paths) == 1:
        return config
    names = " + ".join(store.spec.teacher.name for store in inputs.members.caches)
    teachers = {**config["teacher"], "name": names}
    return {**config, "cache": paths, "weights": inputs.shares, "teacher": teachers}


def _refuse_other(folder: Path, config: dict[str, Any]) -> None:
    def identity(value: dict[str, Any]) -> dict[str, Any]:
        recipe = {k: v for k, v in value["recipe"].items() if k not in _NOT_COMPARED}
        rest = {"recipe": recipe, "num_views": value["num_views"]}
        coverage = value.get("coverage", {})
        rest |= {"missing": coverage.get("missing", 0), "present": coverage.get("samples_present")}
        if "weights" in value:  # names more than the fingerprint of all together
            return {**rest, "weights": value["weights"]}
        return {**rest, "cache_fingerprint": value.get("cache_fingerprint")}

    if not (folder / "config.json").exists():
        raise UsageError(
            f"{folder / 'config.json'} is missing, and the run was not begun by this command with "
            "this recipe, cache and data. Run the same command as then, restore the file from a "
            "copy, or pass --fresh to begin anew."
        )
    try:
        there = read_config(folder)
    except UsageError as error:  # of another program, perhaps: nothing here is replaced
        raise CacheDamaged(str(error)) from None
    if lacking := {"recipe", "num_views"} - there.keys():
        raise CacheDamaged(
            f"{folder / 'config.json'} is no file that kdcache writes to a run: it lacks "
            f"{min(lacking)}. Restore it from a copy, or pass --fresh to begin anew."
        )
    config = parse_json(json.dumps(config))  # lists, as they are there
    if (coverage := there.get("coverage")) and "coverage" in config:
        coverage.setdefault("samples_present", config["coverage"]["samples_present"])
    if found := difference(identity(there), identity(config)):
        views = there["num_views"]
        grown = views < config["num_views"]
        grown &= identity({**there, "num_views": config["num_views"]}) == identity(config)
        now = f"Pass num_views={views} for the views of that run, choose" if grown else "Choose"
        raise UsageError(
            f"{folder} holds another run: {found} now. {now} another --out, or pass --fresh to "
            "replace it."
        )
    # without a checkpoint the run is finished, or begins anew in the order of now
    resumes = any(folder.glob("checkpoint*.pt")) and config["recipe"]["aug_repeats"] > 1
    if resumes and there.get("layout", 1) != config["layout"]:
        raise UsageError(
            f"{folder} was begun by a version of kdcache that laid out the views of "
            "aug_repeats > 1 in batches in another order, so that it cannot go on exactly. Finish "
            "it with that version, choose another --out, or pass --fresh to begin anew."
        )
