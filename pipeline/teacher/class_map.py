"""Class maps: from the classes of a teacher's head to those of the data set.

A map has for each class of the data set its source classes of the head. The target's probability
is the sum of theirs, divided by the sum over all classes of the map. Where every class has one
source, that is a softmax over the chosen logits. Both are log Σ exp of the sources'
logits, taken as the logits of the data set's classes: exact at any temperature that follows.

A file has a list (JSON), or a line for each class (any other name): a number of the head's
classes or the name of one, or several of them, separated by commas or spaces. Names are those of
the network's own `label_names`, else the synsets ("n01440764") that timm knows for its head.

Shapes: B views, C classes of the data set, H classes of the head.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from cache_tools.errors import UsageError
from cache_tools.file_contents import parse_json, read_text
from cache_tools.spec.canonical import canonical_json, sha256

Names = dict[str, list[int]]

_ROWS = "Correct it: a list with the source classes of the teacher for each class."


@dataclass(frozen=True)
class ClassMap:
    """Source classes of a head for each class of the data set."""

    sources: tuple[tuple[int, ...], ...]
    """[C] numbers of the head's classes, ascending."""

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of `sources`, independent of the file."""
        return sha256(canonical_json(self.sources))


class Regroup(nn.Module):
    """Logits of a head's classes [B, H] to logits of the data set's classes [B, C].

    Classes are sorted by how many sources they have, most first, so that the n-th step adds the
    n-th source of those that have one: no padding, no atomics, the same bits every time.
    """

    def __init__(self, class_map: ClassMap) -> None:
        super().__init__()
        sources = class_map.sources
        order = sorted(range(len(sources)), key=lambda c: (-len(sources[c]), c))
        steps = [
            [sources[c][n] for c in order if len(sources[c]) > n]
            for n in range(len(sources[order[0]]))
        ]
        self._count = len(steps)
        for n, step in enumerate(steps):
            self.register_buffer(f"step{n}", torch.tensor(step), persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def forward(self, logits_BH: Tensor) -> Tensor:
        """Log Σ exp over the sources of each class."""
        logits_BC = logits_BH[:, self.get_buffer("step0")]
        for n in range(1, self._count):
            more = logits_BH[:, self.get_buffer(f"step{n}")]
            count = more.shape[1]
            logits_BC[:, :count] = torch.logaddexp(logits_BC[:, :count], more)
        return logits_BC[:, self.get_buffer("back")]


def load(path: str, model: nn.Module) -> ClassMap:
    """Read a class map for the head of a network.

    Raises:
        UsageError: The file cannot be read, a class has no source, or a source is none of the
            head's classes.
    """
    wanted = _read(Path(path))
    if len(wanted) < 2:
        raise UsageError(f"the class map {path} has {len(wanted)} classes, expected 2 or more.")
    num_classes, names = cast(int, model.num_classes), _names(model)
    rows = []
    for number, row in enumerate(wanted):
        context = f"class {number} of the class map {path}"
        if not row:
            raise UsageError(f"{context} is empty: name its source classes of the teacher.")
        sources = [_source(one, num_classes, names, context) for one in row]
        if len(set(sources)) < len(sources):
            raise UsageError(f"{context} names a class of the teacher twice: {row}. Name it once.")
        rows.append(tuple(sorted(sources)))
    return ClassMap(tuple(rows))


def _read(path: Path) -> list[list[int | str]]:
    """Read the rows of a file, in which numbers may be text."""
    try:
        text = read_text(path)
        if path.suffix != ".json":
            return [[x for x in re.split(r"[\s,;]+", row) if x] for row in text.splitlines()]
        rows = parse_json(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the class map {path}: {error}. {_ROWS}") from None
    if not isinstance(rows, list):
        raise UsageError(f"the class map {path} is a JSON {type(rows).__name__}, expected a list.")
    return [row if isinstance(row, list) else [row] for row in rows]


def _names(model: nn.Module) -> Names:
    """Names of the head's classes, each with the numbers of its classes; empty if unknown."""
    found = cast(dict[str, Any], model.pretrained_cfg).get("label_names")
    if not found or len(found) != model.num_classes:
        subset = infer_imagenet_subset({"num_classes": model.num_classes})
        info: Any = None if subset is None else ImageNetInfo(subset)
        found = [] if info is None else info.label_names()
    names: Names = {}
    for number, name in enumerate(found):
        names.setdefault(str(name), []).append(number)
    return names


def _source(one: Any, num_classes: int, names: Names, context: str) -> int:
    if isinstance(one, str):
        is_number = re.fullmatch(r"-?\d{1,18}", one) is not None
        meant = set(names.get(one, ()))
        if meant and is_number and 0 <= int(one) < num_classes:
            meant.add(int(one))
        if len(meant) > 1:
            raise UsageError(
                f"{context} names {one!r}: that is a name of several of the teacher's classes, or "
                f"the number of another one ({', '.join(map(str, sorted(meant)))}). Give "
                + ("its number in a JSON list." if is_number else "its number.")
            )
        if meant:
            return meant.pop()
        if not is_number:
            known = f"such as {next(iter(names))!r}" if names else "which have no names"
            raise UsageError(
                f"{context} names {one!r}: that is none of the teacher's {num_classes} classes, "
                f"{known}. Name another class, or give its number."
            )
        one = int(one)
    if type(one) is not int or not 0 <= one < num_classes:
        raise UsageError(
            f"{context} names {one!r}: the teacher's classes are 0 to {num_classes - 1}. Is the "
            "map for another teacher?"
        )
    return one
