"""Export of a finished student to a folder for timm and the Hub, with its provenance.

    FOLDER/model.safetensors   the weights
    FOLDER/config.json         timm's config: architecture, classes, preprocessing; under `kdcache`,
                               teacher, cache and recipe of the student
    FOLDER/README.md           the model card in timm's format

The folder contains no path of the machine that wrote it, and is written whole or not at all.
"""

import copy
import filecmp
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timm.data import ImageNetInfo
from timm.models import push_to_hf_hub
from timm.models._hub import generate_readme
from torch import nn

from cache_tools.errors import CacheIncomplete, KdcacheError, NonFinite, UsageError
from cache_tools.share import markdown
from cache_tools.storage import atomic, seal, system_errors
from cache_tools.version import __version__
from train import networks, run_dir, run_state
from train.export import model_card

log = logging.getLogger("kdcache")
_FILES = {"config.json", "model.safetensors", "README.md"}
Weights = Literal["model", "model-ema", "model-best"]


@dataclass(frozen=True)
class ExportedStudent:
    """Weights, configuration and provenance of a student."""

    model: nn.Module
    """Network with the preprocessing of its evaluation."""
    config: dict[str, Any]
    """Additions to timm's config.json: class names and `kdcache`."""
    facts: dict[str, Any]
    """Training and accuracy; `config["kdcache"]`."""


def read(folder: Path, weights: Weights, architecture: str = "") -> ExportedStudent:
    """Read a student of a finished run; `architecture` names it where it is code.

    Raises:
        RunNotFound, CacheIncomplete: No run, or one that is not finished.
        UsageError: It has no such weights.
        NonFinite: A weight is NaN or Inf.
    """
    config = run_dir.read_config(folder)
    if not (folder / "result.json").is_file():
        raise run_state.unfinished(folder)
    if "teacher" not in config:
        raise CacheIncomplete(
            f"the run {folder} was made by an earlier kdcache and lacks facts that a model card "
            "needs. Run its kdcache train command again: it trains nothing and adds them."
        )
    if not (folder / weights / "model.safetensors").is_file():
        missing = {
            "model-ema": "model_ema_decay is 0",
            "model-best": "there was nothing to measure on",
        }
        raise UsageError(
            f"the run {folder} has no {weights} ({missing.get(weights, 'it was removed')}). Export "
            f"one it has: {', '.join(sorted(p.name for p in folder.glob('model*')))}."
        )
    seal.check_network(folder / weights)
    model: Any = networks.NETWORK.load()(str(folder / weights), architecture=architecture)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise NonFinite(
            f"{folder / weights} has weights that are NaN or Inf: the run diverged in its last "
            "steps. Train it again with a lower lr or with clip_grad, and --fresh."
        )
    facts = _facts(folder, config, weights)
    made = run_dir.read_json(folder / weights / "config.json").get("model_args", {})
    config = {**_class_names(config, model.num_classes), "model_args": made, "kdcache": facts}
    return ExportedStudent(model, config, facts)


def write(student: ExportedStudent, out: Path, license_: str, fresh: bool) -> None:
    """Write the folder; `license_` is the Hub's name, or ""; `fresh` replaces an existing one.

    One that has the same bytes is left as it is.

    Raises:
        UsageError: `out` exists and may not be replaced, or the licence is no name.
    """
    card = _card(student, license_, "local-dir:FOLDER")
    exported = _is_export(out)
    out, there = Path(os.path.realpath(out)), out.is_dir()
    atomic.sweep(out)
    with system_errors.writing(out):
        # a folder that is there is filled: it may be a mount point, which cannot be replaced
        with atomic.temporary(out, within=there, folder=True) as building:
            networks.save(student.model, building, copy.deepcopy(student.config))
            text = generate_readme(card, markdown.text(out.name))
            atomic.write(building / "README.md", text.encode())
            if exported and not fresh:
                if _same_files(building, out):
                    log.info("%s is complete; --fresh would write it again", out)
                    return
                raise UsageError(
                    f"{out} contains another student. Choose another --out, or pass --fresh to "
                    "replace it."
                )
            if there:
                atomic.clear(out, building.name)
                for path in building.iterdir():
                    path.rename(out / path.name)
            else:
                building.rename(out)
        atomic.sync_folder(out if there else out.parent)


def push(student: ExportedStudent, repo: str, license_: str, private: bool) -> str:
    """Upload to the Hub; an existing model card is left unchanged.

    Returns:
        Its name for `timm.create_model`.

    Raises:
        KdcacheError: No network, no token, no permission, or no such name.
    """
    model: Any = student.model
    try:
        push_to_hf_hub(
            model,
            repo,
            commit_message=f"Add {student.facts['student']} distilled with kdcache",
            private=private,
            model_config=networks.saved_config(student.model) | copy.deepcopy(student.config),
            model_args=dict(model._model_args) if networks.is_foreign(model) else None,
            model_card=_card(student, license_, f"hf-hub:{repo}"),
            safe_serialization=True,
        )
    except Exception as error:  # the Hub's client raises many kinds: network, token, right, name
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KdcacheError(
            f"the upload of {repo} to the Hub failed ({reason}). Check the network, the name "
            "USER/NAME and the token (hf auth login, or HF_TOKEN), and export again with --fresh."
        ) from None
    return f"hf-hub:{repo}"


def opening(student: ExportedStudent, place: str) -> str:
    """Return the expression that opens an exported student; `place` as `push` returns it."""
    library, colon, _ = networks.architecture(student.model).partition(":")
    if not colon:
        return f'timm.create_model("{place}", pretrained=True)'
    if library == "transformers":
        return f'AutoModelForImageClassification.from_pretrained("{place.partition(":")[2]}")'
    return f"a network of {library}: README.md has the lines that open it"


def _class_names(config: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Class names, if the data set has them, with descriptions of ImageNet's synsets."""
    names = config["class_names"]
    if len(names) != num_classes:
        return {}
    described = ImageNetInfo("imagenet22k").label_descriptions(as_dict=True)
    if not all(name in described for name in names):
        return {"label_names": names}
    return {"label_names": names, "label_descriptions": {n: described[n] for n in names}}


def _facts(folder: Path, config: dict[str, Any], weights: Weights) -> dict[str, Any]:
    result = run_dir.read_json(folder / "result.json")
    accuracy = run_dir.accuracies(folder)
    return {
        "kdcache_version": __version__,
        "student": result["student"],
        "weights": weights,
        **accuracy[weights],
        "accuracies": accuracy,
        "validation_images": config["validation_images"],
        "mode": result["mode"],
        "teacher": config["teacher"],
        "cache_fingerprint": result["cache_fingerprint"],
        "samples": config["samples"],
        "views_per_sample": config["num_views"],
        "views": config["views"],
        "size": config["view_size"],
        "eval_size": config.get("eval_size", config["view_size"]),
        "recipe": config["recipe"],
        "seconds": result["seconds"],
    }


def _card(student: ExportedStudent, license_: str, model_name: str) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z0-9.\-]*", license_):
        raise UsageError(
            f"--license {license_!r} is no name of a licence on the Hub, such as apache-2.0 or "
            "cc-by-nc-4.0."
        )
    architecture = networks.architecture(student.model)
    classes = student.config.get("label_names", ())
    named = license_ or "unknown", model_name, architecture, classes
    return model_card.describe(student.facts, *named)


def _is_export(out: Path) -> bool:
    """Return whether `out` is an export; raise UsageError if it is neither that nor new."""
    if not out.exists():
        return False
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
        rest = {name for name in names if not atomic.is_temporary(name)}
        if not rest or (rest < names and rest < _FILES):  # new, or an export was killed
            return False
    config = run_dir.read_json(out / "config.json") if (out / "config.json").is_file() else {}
    if "kdcache" not in config:
        raise UsageError(f"{out} exists and is no exported student. Choose another --out.")
    return True


def _same_files(folder: Path, other: Path) -> bool:
    """Return whether the other folder has all files of a folder, with the same bytes."""
    names = [path.name for path in folder.iterdir()]
    return len(filecmp.cmpfiles(folder, other, names, shallow=False)[0]) == len(names)
