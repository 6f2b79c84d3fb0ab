"""Networks of a user's own: `my_lab.models:build`, a function that returns a module.

It may return a dictionary beside it, of timm's keys for `pretrained_cfg`: input_size, mean, std,
interpolation, crop_pct. For a student, or weights from a file, it is called with `num_classes` and
the recipe's options, as far as it has such parameters; as a teacher, without any. Random numbers
that a teacher draws are of one seed, so that it is the same network every time.
"""

import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_tools.errors import UsageError
from pipeline.networks import interface


def untrained(
    name: str, num_classes: int, options: Mapping[str, Any], config: Mapping[str, Any]
) -> nn.Module:
    """Call the function for a network of `num_classes` (`registry.Source`)."""
    function = _import(name)
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of compiled code
        parameters = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = dict(options)
    if num_classes and (takes_any or "num_classes" in parameters):
        given["num_classes"] = num_classes
    if not takes_any and (unknown := sorted(given.keys() - parameters.keys())):
        raise UsageError(f"python:{name} has no parameter {unknown[0]!r}. Leave that option out.")
    try:
        made = function(**given)
    except Exception as error:  # of the user's code
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"python:{name} fails: {type(error).__name__}: {error} ({Path(place.filename).name}, "
            f"line {place.lineno})."
        ) from error
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not isinstance(own, dict | None):
        raise UsageError(
            f"python:{name} returns a {type(made).__name__}, expected a torch.nn.Module, or a pair "
            "of one and a dictionary (input_size, mean, std, interpolation, crop_pct). A teacher "
            "that is no module writes its cache with kdcache.create()."
        )
    own = own if own is not None else getattr(model, "pretrained_cfg", None) or {}
    own = {key: value for key, value in own.items() if value is not None}
    return interface.adapt(model, f"python:{name}", {**own, **config}, options)


def pretrained(name: str) -> tuple[str, nn.Module]:
    """Call the function without arguments (`registry.Source`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return f"python:{name}", untrained(name, 0, {}, {})


def _import(name: str) -> Callable[..., Any]:
    """Import the function `module:function`."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        raise UsageError(
            f"python:{name} is no name of a function. Write python:MODULE:FUNCTION, such as "
            "python:my_lab.models:build."
        )
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # of the user's code, too
        root = path.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(root)
        raise UsageError(
            f"the module of python:{name} cannot be imported ({type(error).__name__}: {error})."
            + f" Pass the folder of {root} in the environment: PYTHONPATH=FOLDER." * missing
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(
            f"{path} ({getattr(module, '__file__', None) or 'built in'}) has no function "
            f"{attribute!r}. Name one of the module, as python:MODULE:FUNCTION."
        )
    return function  # type: ignore[no-any-return]
