"""Samples that the members of a tar make by WebDataset's rules.

A key ends at the first dot of a file's name, the rest is its extension: `k.jpg` is the picture of
`k`, not `k.seg.png` beside it. Nothing is taken or dropped in silence: what could be read in two
ways is an error, what is no picture and no label is counted. https://github.com/webdataset

Shapes: N samples of the tar.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from cache_tools.data.tar_headers import Member
from cache_tools.file_contents import decode_text, parse_json
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.spec.teacher import MAX_CLASSES

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
CLASS, JSON = ".cls", ".json"
JSON_LABELS = ("label", "cls", "class_id", "target")
"""Members of a JSON file that may be the class number, the first of them that is one."""
_MOST_CLASS, _MOST_JSON = 64, 2**20


@dataclass(frozen=True)
class Sample:
    """One sample of a tar."""

    name: str
    """Its key: folder and name up to the first dot."""
    image: Member
    label: Member | None
    """Its `.cls` or, without one, its `.json`."""


def split_name(member: str) -> tuple[str, str]:
    """Split a member's name into its key and its whole extension in small letters.

    As in WebDataset a file whose name begins with a dot, or has none, has no key: ("", "").
    """
    folder, _, file = member.removeprefix("./").rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, "." + extension.lower()


def samples(found: Iterable[Member]) -> tuple[list[Sample], Counter[str]]:
    """Group members to samples; also the number of members passed over, by their extension.

    Raises:
        ValueError: Two members could be the picture or the label of one sample.
    """
    groups: dict[str, dict[str, Member]] = {}
    passed: Counter[str] = Counter()
    for member in found:
        key, extension = split_name(member.name)
        used = _last(extension) in IMAGES | {CLASS, JSON}
        if not key or (member.kind and not used):
            base = member.name.rpartition("/")[2]
            passed["._*" if base.startswith("._") else member.kind or "without extension"] += 1
        elif member.kind:
            raise ValueError(
                f"{member.name} is a {member.kind}, whose content is not in the tar. Write the tar "
                "of the files themselves (tar --dereference)"
            )
        elif extension in (group := groups.setdefault(key, {})) and used:
            raise ValueError(f"{member.name} is in it twice. Names of samples must differ")
        else:
            group[extension] = member
    made = [sample for key, group in groups.items() for sample in _of_key(key, group)]
    taken = {id(m) for sample in made for m in (sample.image, sample.label)}
    rest = (m for group in groups.values() for m in group.values() if id(m) not in taken)
    passed.update(_last(split_name(m.name)[1]) for m in rest)
    return made, passed


def _of_key(key: str, group: dict[str, Member]) -> list[Sample]:
    """Make the samples of the members with one key: one, or none.

    Names with dots (img.v0.jpg, img.v0.cls) give several samples one key. They are told apart by
    their last dot where each has a label of its own; pictures that share one are an error.
    """
    images = _candidates(group, IMAGES)
    stems = [extension.rpartition(".")[0] for extension in images]
    if len(images) > 1 and all(stems) and all(stem + CLASS in group for stem in stems):
        pairs = zip(stems, images, strict=True)
        return [Sample(key + stem, group[i], group[stem + CLASS]) for stem, i in pairs]
    labels = _candidates(group, {CLASS})
    for names, what in ((images, "pictures"), (labels, "labels")):
        if len(names) > 1:
            raise ValueError(
                f"the sample {key} has {len(names)} {what}, {key}{names[0]} and {key}{names[1]}: a "
                "key ends at the first dot. Leave one of them, or rename the samples"
            )
    label = group.get(labels[0] if labels else JSON)
    return [Sample(key, group[name], label) for name in images]


def _candidates(group: dict[str, Member], kinds: set[str]) -> list[str]:
    """Find extensions of these kinds: whole ones, and only without any those that end in one."""
    return [e for e in group if e in kinds] or [e for e in group if _last(e) in kinds]


def _last(extension: str) -> str:
    return "." + extension.rpartition(".")[2]


def label(file: BinaryIO, member: Member | None) -> int:
    """Read the class number in a `.cls` or `.json`; NO_LABEL where a JSON file has none.

    Raises:
        ValueError: It contains something else.
    """
    if member is None:
        return NO_LABEL
    is_json = split_name(member.name)[1] == JSON
    if member.length > (_MOST_JSON if is_json else _MOST_CLASS):
        if is_json:
            return NO_LABEL
        raise ValueError(f"{member.name} has {member.length:,} bytes and no class number")
    file.seek(member.offset)
    text = decode_text(file.read(member.length), "replace")
    if is_json:
        found = (_json(text).get(name) for name in JSON_LABELS)
        number = next((value for value in found if type(value) is int), NO_LABEL)
    else:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{member.name} contains {text[:40]!r}, no class number") from None
    if number >= MAX_CLASSES:
        raise ValueError(f"{member.name} has a class beyond {MAX_CLASSES - 1:,}: {text[:40]!r}")
    if number < NO_LABEL:
        raise ValueError(f"{member.name} has the class {str(number)[:40]}, -1 is that of none")
    return number


def _json(text: str) -> dict[str, object]:
    try:
        value = parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
