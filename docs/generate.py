"""Write docs/reference: commands, recipe keys and the Python API, from the code itself.

python docs/generate.py            # --check: write nothing, and fail while a page is out of date

Commands come from typer's objects, keys from the recipes' dataclasses and the docstrings below
their fields, Python names from `kdcache.__all__`. tests/test_reference.py fails while a page is out
of date, as does `make docs`.
"""

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import typer

import kdcache
from cache_tools import config
from cache_tools.cli import main
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from docs import api
from pipeline.recipe import CacheRecipe, DatasetRecipe, TeacherSource
from train.recipe import TrainRecipe
from train.sweep import grid

FOLDER = Path(__file__).parent / "reference"
TABLES: dict[str, tuple[type, str, str]] = {
    "Stage 1": (
        CacheRecipe,
        f"Recipes of `kdcache cache`, `plan` and `views`: {', '.join(config.names('pipeline'))}.",
        "",
    ),
    "Stage 1: data set": (DatasetRecipe, "The table `[dataset]`.", "dataset."),
    "Stage 1: views": (ViewSpec, "The table `[views]`: the augmentation.", "views."),
    "Stage 1: targets": (
        TargetSpec,
        "The table `[targets]`: what is stored of a view.",
        "targets.",
    ),
    "Stage 1: teachers": (
        TeacherSource,
        "A list of tables `[[teachers]]`, for one teacher with options, or several.",
        "teachers.",
    ),
    "Stage 2": (
        TrainRecipe,
        f"Recipes of `kdcache train`: {', '.join(config.names('train'))}.",
        "",
    ),
}
"""Tables of keys: dataclass, introduction and the name of the table in front of a key."""
TIMM = {
    "dataset.split": "--train-split",
    "views.size": "--img-size",
    "views.interpolation": "--train-interpolation",
    "views.auto_augment": "--aa",
    "views.re_prob": "--reprob",
    "views.re_mode": "--remode",
    "views.re_count": "--recount",
    **{
        f"views.{name}": f"--{name.replace('_', '-')}"
        for name in (
            *("scale", "ratio", "hflip", "color_jitter"),
            *("mixup", "cutmix", "mixup_prob", "mixup_switch_prob"),
        )
    },
    "memory_format": "--channels-last",
    "compile": "--torchcompile",
    "precision": "--amp --amp-dtype",
    "student": "--model",
    "student_kwargs": "--model-kwargs",
    "init": "--pretrained, --initial-checkpoint",
    "loss": "--kd-loss-type",
    "temperature": "--kd-temperature",
    "task_loss": "--bce-loss",
    "model_ema_decay": "--model-ema --model-ema-decay",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("batch_size", "epochs", "aug_repeats", "distill_loss_weight", "task_loss_weight"),
            *("smoothing", "bce_target_thresh", "opt", "opt_kwargs", "lr", "weight_decay"),
            *("sched", "sched_on_updates", "warmup_epochs", "warmup_prefix", "min_lr", "warmup_lr"),
            *("layer_decay", "drop", "drop_path", "grad_accum_steps", "clip_grad", "sync_bn"),
            *("model_ema_warmup", "grad_checkpointing", "crop_pct", "seed"),
        )
    },
}
"""Option of timm's train.py that a key corresponds to."""
API = {
    "Read a cache": ("open", "Cache", "SparseTargets"),
    "Train in a loop of your own": (
        *("Batches", "SoftTargets", "kd_loss", "bkd_loss", "dkd_loss", "dist_loss"),
    ),
    "Write a cache": ("create", "CacheWriter", "WriterBatch", "TeacherInfo"),
    "One call for each command": (
        *("make_cache", "CacheResult", "train", "TrainResult"),
        *("verify", "VerifyResult", "evaluate", "EvalResult"),
    ),
    "Recipes": ("CacheRecipe", "TeacherSource", "TrainRecipe"),
    "Errors": (
        *("KdcacheError", "UsageError", "RecipeError", "DataError", "TeacherError", "NonFinite"),
        "OutOfMemory",
        *("CacheNotFound", "CacheIncomplete", "CacheDamaged", "CacheMismatch", "RunNotFound"),
    ),
}
_NOTE = "<!-- Written by `python docs/generate.py`. -->\n"
_COMMANDS = """# Commands

`kdcache --help` lists them; `kdcache COMMAND --help` prints the help on this page. Results go to
stdout, messages to stderr. Exit codes: 0 done, 1 a problem with data, caches or results, 2 wrong
usage, 130 interrupted.

| command | |
|---|---|
"""
_KEYS = """# Recipe keys

A recipe is a TOML file, or one of those shipped, by name. Keys are given in the file, on the
command line (`kdcache train digits lr=1e-3 opt_kwargs.betas="[0.9, 0.95]"`, `kdcache cache photos
views.size=160`) or in Python (`values={"lr": 1e-3}`). `base = "NAME"` names a recipe whose keys are
taken over where they are not given. An unknown key is an error. The column *timm* has the options
of timm's `train.py` for the same setting.
"""
_GRIDS = """
## Grids

A grid of `kdcache sweep` has the keys of stage 2, and these:

| key | type | |
|---|---|---|
| `base` | text | Recipe whose keys all students have in common. |
| `grid` | table | Lists of values by key; every combination is a student. |
| `runs` | list of tables | Students instead of a grid, or each of these with the whole grid. |
| `runs.name` | text | Name of a student; default: its values. |

"""
_PYTHON = """# Python

`import kdcache` gives these names and `kdcache.__version__`. Each is imported when it is first
used: reading targets requires numpy and zarr alone.
"""


def pages() -> dict[str, str]:
    """Each page by its name."""
    return {"commands.md": commands(), "keys.md": keys(), "python.md": python()}


def commands() -> str:
    """Commands with all arguments and options."""
    text = _NOTE + _COMMANDS
    text += "".join(f"| [`{n}`](#kdcache-{n}) | {line} |\n" for n, line in main.HELP.items())
    text += f"\n## kdcache\n\n{_parameters(main._options)}"
    entries = {entry.name: entry for entry in entry_points(group="kdcache.commands")}
    for name in main.HELP:
        function = entries[name].load()
        text += f"\n## kdcache {name}\n\n```\nkdcache {name} {_usage(function)}\n```\n\n"
        text += f"{inspect.getdoc(function)}\n\n{_parameters(function)}"
    return text


def keys() -> str:
    """Keys of recipes and grids."""
    text = _NOTE + _KEYS
    for title, (cls, lead, table) in TABLES.items():
        text += f"\n## {title}\n\n{lead}\n\n| key | type | default | range | timm | |\n"
        text += f"|---|---|---|---|---|---|\n{''.join(_keys(cls, table))}"
    return f"{text}{_GRIDS}{(inspect.getdoc(grid) or '').partition(chr(10) * 2)[2]}\n"


def python() -> str:
    """Public names: signature, docstring, fields and members of each."""
    if strange := {*kdcache.__all__} ^ {"__version__", *sum(API.values(), ())}:
        raise SystemExit(f"API of docs/generate.py and kdcache.__all__ differ: {sorted(strange)}")
    text = _NOTE + _PYTHON
    for title, names in API.items():
        text += f"\n## {title}\n\n| name | |\n|---|---|\n"
        for name in names:
            line = (inspect.getdoc(getattr(kdcache, name)) or "").partition("\n\n")[0]
            text += f"| [`kdcache.{name}`](#{api.anchor(f'kdcache.{name}')}) | {_cell(line)} |\n"
        text += "".join(map(api.entry, names))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _usage(function: Any) -> str:
    found = _typer_parameters(function)
    arguments = [_argument(p) for p in found if p.param_type_name == "argument"]
    options = [f"{p.opts[0]} {p.metavar}" for p in found if p.opts[0] != p.name and p.required]
    return " ".join([*arguments, *options, "[OPTIONS]"])


def _argument(parameter: Any) -> str:
    name = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
    return f"{name}{'...' * (parameter.nargs < 0)}"


def _parameters(function: Any) -> str:
    """Table of arguments and options."""
    hints = typing.get_type_hints(function, include_extras=True)
    text = "| | default | |\n|---|---|---|\n"
    for parameter in _typer_parameters(function):
        hint, info, *_ = typing.get_args(hints[parameter.name])
        if parameter.param_type_name == "argument":
            names = _argument(parameter)
        else:
            names = ", ".join(parameter.opts + parameter.secondary_opts)
            names += "" if hint is bool else f" {parameter.metavar or _metavar(hint)}"
        off = parameter.default is False
        default = "required" if parameter.required else _default("" if off else parameter.default)
        more = [f"at {w} {n:,}" for w, n in (("least", info.min), ("most", info.max)) if n]
        more += ["repeatable"] * parameter.multiple
        notes = f" {', '.join(more).capitalize()}." if more else ""
        text += f"| `{_cell(names)}` | {default} | {_cell(info.help)}{notes} |\n"
    return text


def _metavar(hint: Any) -> str:
    name = _type(hint).removeprefix("list of ")
    return name.replace(", ", "|") if ", " in name else name.upper()


def _typer_parameters(function: Any) -> list[Any]:
    """Arguments and options of a command, as typer has them."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [p for p in typer.main.get_command(app).params if p.name != "help"]


def _keys(cls: type, table: str) -> Iterator[str]:
    """Rows of the keys of a dataclass."""
    docstrings, hints = api.below(cls), typing.get_type_hints(cls, include_extras=True)
    former = {new: old for old, new in getattr(cls, "ALIASES", {}).items()}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint, *marks = [hints[field.name]]
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        shown = "required" if default is dataclasses.MISSING else _default(default)
        text = _cell(docstrings[field.name])
        text += f" Formerly `{former[field.name]}`." if field.name in former else ""
        timm = ", ".join(f"`{o}`" for o in TIMM.get(table + field.name, "").split(", ") if o)
        bounds = "".join(_range(m) for m in marks if isinstance(m, config.Range))
        row = f"`{table}{field.name}`", _type(hint), shown, bounds, timm, text
        yield f"| {' | '.join(row)} |\n"


def _type(hint: Any) -> str:
    """Type of a value as a user writes it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (UnionType, typing.Union):
        return ", ".join(_type(a) for a in arguments if a is not type(None))
    if origin in (tuple, list):
        many = origin is list or arguments[-1] is Ellipsis
        return f"{'list of' if many else f'{len(arguments)} ×'} {_type(arguments[0])}"
    if hint is config.Kwargs or dataclasses.is_dataclass(hint):
        return "table"
    return {str: "text", bool: "true, false", Path: "path"}.get(hint, hint.__name__)


def _default(value: Any) -> str:
    if value in (None, "", (), {}) or dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _range(bounds: config.Range) -> str:
    above, below = "above " * (bounds.excluded == "least"), "below " * (bounds.excluded == "most")
    large = f"2^{round(math.log2(bounds.most or 1))}"
    high = large if bounds.most > 2**40 else f"{bounds.most:,.10g}"
    return f"{above}{bounds.least:,} to {below}{high}"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for name, text in pages().items():
        if "--check" not in sys.argv:
            (FOLDER / name).write_text(text, encoding="utf-8")
        elif (FOLDER / name).read_text(encoding="utf-8") != text:
            sys.exit(f"docs/reference/{name} is out of date. Run: python docs/generate.py")
