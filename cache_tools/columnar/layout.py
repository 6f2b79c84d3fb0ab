"""Layout of a table of images: the columns of the picture, its path and its label, and the classes.

`datasets` writes a picture as a struct of its bytes and its path, and describes the columns in the
schema's metadata; others have a column of plain bytes. What can be meant in two ways is an error.
https://huggingface.co/docs/datasets/about_dataset_features
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import parse_json
from cache_tools.runtime.text import printable

_METADATA = b"huggingface"
_IMAGES = ("image", "img", "jpg", "png", "webp")
_LABELS = ("label", "cls", "class", "target", "fine_label")
_PATHS = ("path", "file_name", "filename", "__key__")
"""Usual names of columns, the first of them that is there."""
_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """Names of columns; where one is empty, the column follows from the schema."""

    image: str = ""
    label: str = ""
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Columns":
        """Parse `image=img,label=fine_label`; UsageError for anything else."""
        known = [field.name for field in fields(cls)]
        pairs = [part.partition("=")[::2] for part in text.split(",") if part]
        if any(name not in known or not column for name, column in pairs):
            raise UsageError(f"--columns {text}: expected NAME=COLUMN with {', '.join(known)}.")
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"--columns {text}: each of {', '.join(known)} is named once at most.")
        return cls(**dict(pairs))


@dataclass(frozen=True)
class Layout:
    """Columns of a table of images."""

    image: str
    """Column of the encoded pictures."""
    nested: bool
    """True if it is a struct of `bytes` and `path`, False if it is the bytes."""
    label: str
    """Column of the classes; "" of a table without labels."""
    text: bool
    """True if the labels are names of classes, False if numbers."""
    path: str
    """Column of the pictures' paths; "" where they are in the struct, or nowhere."""
    other_path: str
    """Type of the path in the struct where that is no text, so that it is not read; else ""."""
    leaves: tuple[str, ...]
    """Columns to read, those in a struct behind its name and a dot."""
    class_names: tuple[str, ...]
    """Names of the classes in the order of their numbers; none where they are not recorded."""

    @property
    def columns(self) -> Columns:
        """Names of its columns."""
        return Columns(self.image, self.label, self.path)


def of_schema(schema: Any, columns: Columns, where: str) -> Layout:
    """Find the columns of a table of images by its Arrow schema.

    Raises:
        UsageError: A named column is not there or of another type, or several can be meant.
        DataError: The schema's description of the columns is damaged, or the name of one is
            that of another, too.
    """
    import pyarrow as pa

    features = _features(schema, where)
    _check_names(schema, where)
    kinds = {field.name: field.type for field in schema}
    pictures = [name for name, kind in kinds.items() if _is_bytes(kind) or _has_bytes(kind)]
    classes = [name for name, kind in kinds.items()
               if pa.types.is_integer(kind) or _is_text(kind)]  # fmt: skip
    texts = [name for name, kind in kinds.items() if _is_text(kind)]
    marked = {kind: [name for name, feature in features.items() if feature.get("_type") == kind]
              for kind in ("Image", "ClassLabel")}  # fmt: skip

    def choose(
        what: str, fitting: Sequence[str], likely: Sequence[str], usual: Sequence[str]
    ) -> str:
        shown = ", ".join(f"{name} ({kind})" for name, kind in [*kinds.items()][:_SHOWN])
        if named := getattr(columns, what):
            if named in fitting:
                return str(named)
            there = f"no column {named!r}"
            if named in kinds:
                there = f"{kinds[named]} in the column {named!r}, which cannot be {_EXPECTED[what]}"
            raise UsageError(
                f"{where} has {there}. Its columns: {printable(shown)}. Name another one: "
                f"--columns {what}=NAME."
            )
        found = [n for n in likely if n in fitting] or [n for n in usual if n in fitting][:1]
        found = found or (list(fitting) if what == "image" else [])
        found = [n for n in usual if n in found][:1] or found
        if len(found) > 1 or (what == "image" and not found):
            raise UsageError(
                f"{where} has {'several columns' if found else 'no column'} of {_EXPECTED[what]}: "
                f"{printable(shown)}. Name the one that is meant: --columns {what}=NAME."
            )
        return found[0] if found else ""

    image = choose("image", pictures, marked["Image"], _IMAGES)
    label = choose("label", classes, marked["ClassLabel"], _LABELS)
    nested = _has_bytes(kinds[image])
    inner = next((f.type for f in kinds[image] if f.name == "path"), None) if nested else None
    inside = inner is not None and (_is_text(inner) or pa.types.is_null(inner))
    other = "" if inner is None or inside else printable(str(inner))
    path = choose("path", texts, (), () if inside else _PATHS)
    if twice := [name for name in (image, path, label) if name and schema.names.count(name) > 1]:
        raise DataError(
            f"{where} has several columns called {twice[0]!r}. Write it again with a name for "
            "each, or name another column: --columns NAME=COLUMN."
        )
    leaves = [f"{image}.bytes"] if nested else [image]
    leaves += [f"{image}.path"] if inside and not path else []
    text = bool(label) and _is_text(kinds[label])
    names = _class_names(features.get(label, {}), where) if label and not text else ()
    leaves += filter(None, (path, label))
    return Layout(image, nested, label, text, path, other, tuple(leaves), names)


_EXPECTED = {
    "image": "encoded pictures (binary, or a struct with bytes)",
    "label": "classes (integers or text)",
    "path": "paths (text)",
}


def _check_names(fields: Iterable[Any], where: str) -> None:
    """Raise DataError unless the names of columns, and of what is in structs, are UTF-8."""
    import pyarrow as pa

    for field in fields:
        try:
            str(field.name)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} has a column whose name is not UTF-8: {error.object!r:.100}. Write the "
                "file again."
            ) from None
        if pa.types.is_struct(field.type):
            _check_names(field.type, where)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(
        kind.field(i).name == "bytes" and _is_bytes(kind.field(i).type)
        for i in range(kind.num_fields)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _features(schema: Any, where: str) -> dict[str, Mapping[str, Any]]:
    """Describe each column as `datasets` does; none in files of other writers."""
    if (data := (schema.metadata or {}).get(_METADATA)) is None:
        return {}
    try:
        features = parse_json(data)["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: the description of its columns ({_METADATA.decode()}) cannot be read: "
            f"{printable(str(error))}. Write the file again."
        ) from None


def _class_names(feature: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = feature.get("names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: the names of its classes are no list of texts. Write it again.")
    if len({*names}) < len(names) or any("\n" in name for name in names):
        raise DataError(f"{where} names a class twice, or in two lines. Write it again.")
    return tuple(names)
