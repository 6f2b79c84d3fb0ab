"""The facts of a cache on one screen, and all of them, for `kdcache info`."""

import textwrap
from collections.abc import Iterator
from typing import Any

from cache_tools import config
from cache_tools.report.formatting import size
from cache_tools.runtime.text import counted
from cache_tools.spec import class_names
from cache_tools.spec.targets import TargetSpec
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache

_WIDTH, _INDENT = 100, 13
_MEMBERS = 8
"""Teachers of an ensemble that are listed."""
_TIE = "\N{NO-BREAK SPACE}"
"""Space at which no line ends."""


def lines(store: Cache, facts: dict[str, Any]) -> list[str]:
    """Format `store.info` as a screen, with the recipe keys that differ from their defaults."""
    parts, each = facts["parts"], facts["bytes_per_view"]
    rows = {
        "teacher": _teacher(store, facts),
        "classes": _classes(store),
        "data": _data(store),
        "views": _views(store, facts),
        "targets": _targets(facts),
        "size": size(facts["bytes"]) + (f", {each} bytes per view" if each else ""),
        "format": facts["format"],
        "fingerprint": facts["fingerprint"],
        "content id": facts["content_id"],
    }
    if (imported := facts["spec"].get("imported")) is not None:
        rows["imported"] = f"from {imported['origin']}. {imported['note']}"
    found = [
        f"{facts['path']}: {'complete' if parts['done'] == parts['total'] else 'incomplete'}, "
        f"{parts['done']:,} of {counted(parts['total'], 'part')}, "
        f"{counted(facts['views'], 'view')} of {counted(facts['samples'], 'image')}",
        "",
    ]
    for name, value in rows.items():
        for number, line in enumerate(value.split("\n")):
            found += textwrap.wrap(
                line,
                _WIDTH,
                initial_indent=f"{'' if number else name:{_INDENT}}",
                subsequent_indent=" " * _INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    shown = [line.replace(_TIE, " ") for line in found]
    return [*shown, "", "Keys not shown have their defaults; --all prints them, too."]


def everything(value: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each fact, with the path of its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in items:
        path = f"{name}.{key}".lstrip(".")
        if isinstance(one, dict) or (
            isinstance(one, list | tuple) and any(isinstance(x, dict) for x in one)
        ):
            yield from everything(one, path)
        else:
            yield f"{path:36} {_text(one)}"


def _teacher(store: Cache, facts: dict[str, Any]) -> str:
    teacher, top1 = store.spec.teacher, facts["teacher"]["top1_on_views"]
    words = [teacher.name]
    words += [teacher.architecture] * (teacher.architecture not in teacher.name)
    words += [f"{teacher.weights_sha256[:19]}…"] * bool(teacher.weights_sha256)
    words += [teacher.precision] + [f"trained at {teacher.input_size} px"] * bool(
        teacher.input_size
    )
    words += [] if top1 is None else [f"top-1 {top1:.1f} % on these views"]
    text = ", ".join(word.replace(" ", _TIE) for word in words)
    for one in teacher.members[:_MEMBERS]:
        where = f", cache {one.cache[:19]}…" if one.cache else ""
        text += f"\n{one.weight:.4g} of {one.name}, {one.weights_sha256[:19]}…{where}"
    more = len(teacher.members) - _MEMBERS
    return text + (f"\nand {more} more" if more > 0 else "")


def _classes(store: Cache) -> str:
    names = class_names.of_cache(store.spec)
    return f"{store.spec.teacher.num_classes:,}" + (
        f": {class_names.summary(names)}" if names else ""
    )


def _data(store: Cache) -> str:
    dataset = store.spec.dataset
    labels = "labelled" if dataset.labels else "labels not stored"
    keys = "file names" if dataset.key == "stem" else "paths"
    text = f"{counted(dataset.num_samples, 'image')}, {labels}, keys are {keys}"
    return f"{text}; images in {store.source}" if store.source else text


def _views(store: Cache, facts: dict[str, Any]) -> str:
    if (views := facts["spec"]["views"]) is None:
        return f"{facts['views']:,} per image, unknown: they were imported without parameters"
    keys = _keys({k: v for k, v in views.items() if k != "size"}, ViewSpec)
    return f"{facts['views']:,} per image, {store.spec.views.size} px: {keys}".rstrip(": ")


def _targets(facts: dict[str, Any]) -> str:
    kept, tail = facts["kept_classes_mean"], facts["tail_mass_mean"]
    text = "" if kept is None else f"{kept:.4g} classes kept on average"
    text += "" if tail is None else f", {100 * (1 - tail):.2f} % of the probability"
    return f"{text}: {_keys(facts['spec']['targets'], TargetSpec)}".strip(": ")


def _keys(values: dict[str, Any], cls: type) -> str:
    """Recipe keys that differ from their defaults, as key=value."""
    shown = config.changed(values, cls).items()
    return " ".join(f"{key}={_text(value)}".replace(" ", _TIE) for key, value in shown)


def _text(value: Any) -> str:
    """Return a value as in a recipe, whole numbers with separators."""
    if isinstance(value, tuple | list):
        return str([*value])
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)
