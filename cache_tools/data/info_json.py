"""Descriptions of sharded data sets: timm's `_info.json`, and brace patterns.

`_info.json` names the shards of each split and how many samples each has; timm's `wds/…` reader
needs it. Ours has two members more, which timm passes over: `class_names`, and for each split
`index`, true when every shard has its index beside it (`tar_index`).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from braceexpand import braceexpand

from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import parse_json
from cache_tools.runtime.text import printable

T = TypeVar("T")
NAME = "_info.json"
NAMES = (NAME, "info.json")
"""Names of a description, as timm looks for them."""
MAX_NAMES, _MOST_TEXT = 10**6, 2**28
"""Most names of a pattern or of all patterns of a description, and most characters of them."""
_LONGEST, _LONGEST_PART, _SHOWN = 4096, 255, 80
"""Characters of the longest pattern, bytes of a file's name, characters shown in a message."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation", "test"),
    "teacher": ("teacher",),
}
"""Words for each split, in names of folders and shards and in descriptions, whatever the case."""
WORDS = {word for words in SPLITS.values() for word in words}


@dataclass(frozen=True)
class Split:
    """One split of a data set of shards."""

    filenames: tuple[str, ...]
    """Shards, relative to the description."""
    lengths: tuple[int, ...] = ()
    """Samples of each; empty when the description has no counts."""
    indexed: bool = False
    """True if there is an index beside each shard."""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set of shards."""

    where: str
    """Path or URL of the description, for messages."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Its splits, by the names they have there."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the labels, when they were recorded."""

    def find(self, split: str) -> Split | None:
        """Find the split "train", "validation" or "teacher" under any of its names."""
        splits = {name.lower(): found for name, found in self.splits.items()}
        return next((splits[n] for n in SPLITS[split] if n in splits), None)

    def need(self, split: str) -> Split:
        """Find a split as `find`; UsageError if there is none."""
        if (found := self.find(split)) is None:
            names = printable(", ".join(self.splits))[:_SHOWN]
            raise UsageError(
                f"{self.where} has no {split} split, only {names or 'an empty list'}. Rename the "
                f"split there to {split}, name its shards by a pattern of tars, or choose another "
                "split (dataset.split=… of a cache, --split of kdcache shard)."
            )
        return found


def split_words(name: str) -> set[str]:
    """Words for a split in the name of a folder or shard: "imagenet-train-0001.tar" has one."""
    return WORDS.intersection(re.findall("[a-z]+", name.lower()))


def choose(found: Mapping[str, T], split: str, source: str) -> T:
    """Choose what belongs to a split among things by the words in their names; test is the last.

    Raises:
        UsageError: There is none, or several words for one split.
    """
    words = [word for word in SPLITS[split] if word in found]
    words = [word for word in words if word != "test"] or words
    if len(words) == 1:
        return found[words[0]]
    raise UsageError(
        f"{source} has {'several' if words else 'no'} {split} split{'s' * bool(words)}, only "
        f"{', '.join(found)}. Pass its folder or a pattern of tars, or name "
        "the split (dataset.split=… of a cache, --split of kdcache shard)."
    )


def parse(data: bytes, where: str) -> DatasetInfo:
    """Parse a description.

    Raises:
        DataError: It is not one as timm writes it, or names files outside of its folder.
    """
    try:
        value = parse_json(data)
        patterns = {str(name): _patterns(split) for name, split in value["splits"].items()}
        _check_size([pattern for each in patterns.values() for pattern in each])
        splits = {name: _split(value["splits"][name], each) for name, each in patterns.items()}
        classes = _strings(value.get("class_names", []), "class_names")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{where} is not a WebDataset description as timm writes it "
            f"({printable(reason)[: 4 * _SHOWN]}). Correct it, or name the shards by a pattern."
        ) from None
    return DatasetInfo(where, splits, classes)


def has_splits(data: bytes) -> bool:
    """Check if a JSON file has splits with names of shards: other tools have an info.json, too."""
    try:
        return all("filenames" in split for split in parse_json(data)["splits"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _patterns(split: dict[str, Any]) -> tuple[str, ...]:
    names = split["filenames"]
    return _strings([names] if isinstance(names, str) else names, "filenames")


def _strings(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{what} is no list of names")
    "".join(value).encode()  # ValueError of what is no text
    return tuple(value)


def _split(value: dict[str, Any], patterns: Sequence[str]) -> Split:
    filenames = tuple(name for pattern in patterns for name in expand(pattern))
    for name in filenames:
        if name.startswith("/") or "://" in name or ".." in name.split("/"):
            raise ValueError(f"{name!r} is not below the folder of the description")
    if len({*filenames}) < len(filenames):
        raise ValueError("a split names a shard twice")
    lengths = tuple(value.get("shard_lengths", ()))
    if any(type(n) is not int or n < 0 for n in lengths):
        raise ValueError("shard_lengths are no numbers of samples")
    if lengths and len(lengths) != len(filenames):
        raise ValueError(f"{len(filenames)} filenames and {len(lengths)} shard_lengths")
    if lengths and sum(lengths) != value.get("num_samples", sum(lengths)):
        raise ValueError(f"num_samples is {value['num_samples']}, the shards have {sum(lengths)}")
    return Split(filenames, lengths, value.get("index") is True)


def expand(pattern: str) -> list[str]:
    """Brace patterns (`train-{000..127}.tar`) to names, as WebDataset writes them.

    Raises:
        UsageError: It is none, or of more than MAX_NAMES names.
    """
    _check_size([pattern])
    try:
        names = list(braceexpand(pattern))
    except (ValueError, RecursionError):
        raise UsageError(
            f"{pattern[:_SHOWN]} has a brace without its other half. Write ranges as "
            "train-{000..127}.tar."
        ) from None
    for name in names:
        if any(len(os.fsencode(part)) > _LONGEST_PART for part in name.split("/")):
            raise UsageError(
                f"{name[:_SHOWN]}… is longer than the name of any file. Correct the pattern."
            )
    return names


def _check_size(patterns: Sequence[str]) -> None:
    """Raise UsageError for patterns of too many names or characters, without expanding them."""
    names = text = 0
    for pattern in patterns:
        shown = printable(pattern[:_SHOWN])
        if len(pattern) > _LONGEST or not pattern.isprintable():
            raise UsageError(
                f"{shown} has {len(pattern):,} characters, {_LONGEST:,} printable ones are the "
                "most of a pattern. Correct it."
            )
        count = _at_most(pattern)
        names, text = names + count, text + count * len(pattern)
        if names > MAX_NAMES or text > _MOST_TEXT:
            raise UsageError(
                f"{shown} expands to more than {MAX_NAMES:,} names, or names of {_MOST_TEXT:,} "
                "characters, with those before it. Correct its range."
            )


def _at_most(pattern: str) -> int:
    """Bound the number of names that a brace pattern expands to, without expanding it."""
    bound = 1
    while inner := re.search(r"\{([^{}]*)\}", pattern):
        ends = re.fullmatch(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(\.\.-?\d+)?", inner[1])
        first, last = map(_order, ends.groups()[:2]) if ends else (0, inner[1].count(","))
        bound *= abs(last - first) + 1
        pattern = pattern[: inner.start()] + pattern[inner.end() :]
    return bound


def _order(end: str) -> int:
    """Return the position of a range's end among the numbers or letters."""
    return ord(end) if end.isalpha() else int(end)


def missing(pattern: str, names: Sequence[str], absent: Sequence[str]) -> UsageError:
    """Make the error for missing shards of a pattern or a description."""
    if len(absent) == len(names):
        return UsageError(f"there is no shard at {pattern}: not one of the {len(names):,} names.")
    return UsageError(
        f"{len(absent):,} of the {len(names):,} shards of {pattern} are missing, the first is "
        f"{absent[0]}. Fetch them, or name the range that is there."
    )


def check_counts(where: str, split: Split, names: Sequence[str], counts: Sequence[int]) -> None:
    """Raise DataError if the shards hold other numbers of images than the description states."""
    for name, stated, found in zip(names, split.lengths, counts, strict=bool(split.lengths)):
        if stated != found:
            raise DataError(
                f"{where} states that {name} has {stated:,} samples, {found:,} are in it. One "
                "of the two is of another version: fetch both again, or correct the description."
            )
