"""Rows of a table of images, as the bytes of a tar: pictures are then found by their place.

Rows come in the file's order, pictures are wanted in any other, and a Parquet file can only be
unpacked page by page: so a file is unpacked once, as a compressed tar is. A member is called
`PATH/ROW.jpg`, with `=LABEL/` in front where labels are text; `named` makes the samples' names
of these, when all files of a data set are there.
"""

import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from cache_tools.columnar import arrow, parquet
from cache_tools.columnar.layout import Columns, Layout, of_schema
from cache_tools.errors import DataError, KdcacheError, UsageError
from cache_tools.file_contents import HEAD, describe, describe_file
from cache_tools.runtime import host_memory
from cache_tools.runtime.text import printable
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.spec.sample_table import MAX_KEY
from cache_tools.spec.teacher import MAX_CLASSES

log = logging.getLogger("kdcache")
SUFFIXES = (".parquet", ".arrow")
Row = tuple[bytes | None, str | None, int | str | None]
_BLOCK = 512


def is_table(name: str) -> bool:
    """Check if a name is that of a file of rows; `cache-….arrow` are intermediate of `datasets`."""
    file = name.rpartition("/")[2].lower()
    return file.endswith(SUFFIXES) and not file.startswith((".", "cache-"))


def read_layout(part: parquet.Part, size: int, where: str, columns: Columns) -> Layout:
    """Read the layout of a file by ranges of its bytes.

    Raises:
        UsageError: pyarrow is not installed, or the columns do not fit.
        DataError: The file cannot be read; `where` names it.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise UsageError(
            f"{where} is read by pyarrow, which is not installed: pip install 'kdcache[parquet]'."
        ) from None
    reader = parquet if where.lower().endswith(".parquet") else arrow
    try:
        schema = reader.schema(part, size)
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        if isinstance(error, KdcacheError):
            raise
        other = describe(part(0, min(size, HEAD)), containers=False)
        raise _unreadable(where, f"it is {other}" if other else error) from None
    return of_schema(schema, columns, where)


def layout_of_file(path: Path, columns: Columns, where: str = "") -> Layout:
    """Read the layout of a local file, which messages call `where`; raises as `read_layout`."""

    def part(begin: int, end: int) -> bytes:
        file.seek(begin)
        return file.read(end - begin)

    try:
        with path.open("rb") as file:
            return read_layout(part, path.stat().st_size, where or str(path), columns)
    except OSError as error:
        if isinstance(error, KdcacheError):
            raise
        raise _unreadable(where or str(path), error) from None


def has_images(path: Path) -> bool:
    """Check if a file of rows has pictures; False where it cannot be read."""
    try:
        return bool(layout_of_file(path, Columns()))
    except (KdcacheError, OSError):
        return False


def tar(path: Path, layout: Layout, where: str) -> Iterator[bytes]:
    """Yield the bytes of a tar of a file's rows, in their order.

    Rows without bytes are empty pictures, which are found broken later, by name.

    Raises:
        DataError: It is damaged, has other columns or classes than `layout`, or no pictures.
    """
    if layout_of_file(path, layout.columns, where) != layout:
        raise DataError(
            f"{where} has other columns or classes than the first file of the data set. Name files "
            "of one data set by a pattern."
        )
    empty, count = 0, 0
    for count, (data, file, label) in enumerate(_rows(path, layout, where), start=1):
        empty += not data
        name = _name(file or "")
        name = f"{name}/{count - 1:08d}" if name else f"{count - 1:08d}"
        if layout.text:
            name = f"={quote(str(label or ''), safe='').replace('.', '%2E')}/{name}"
        elif (number := _class(label, layout, count - 1, where)) != NO_LABEL:
            yield _member(f"{name}.cls", str(number).encode())
        yield _member(f"{name}.jpg", data or b"")
    if 0 < empty == count:
        raise DataError(
            f"{where} has paths of pictures and not their bytes. Shard the folder of the pictures, "
            "or write the file again with them (datasets embeds them in push_to_hub and "
            "save_to_disk of a data set whose files are there)."
        )
    if empty:
        log.warning("%s: %d of %d rows have no picture", where, empty, count)
    yield bytes(2 * _BLOCK)


def named(members: Sequence[str], text: bool, source: str) -> tuple[list[str], list[str]]:
    """Return the names of samples, and their labels where those are `text`, by their members.

    A sample is called after its path, so that a cache fits a folder of the same pictures; where
    paths are missing or not unique, all are called by their row, counted over all files.
    """
    labels = []
    if text:
        pairs = [member.partition("/") for member in members]
        labels, members = [unquote(p[0][1:]) for p in pairs], [p[2] for p in pairs]
    names = [member.rpartition("/")[0] for member in members]
    count = Counter(names)
    if unnamed := [row for row, name in enumerate(names) if not name or count[name] > 1]:
        first = printable(names[unnamed[0]])
        log.info(
            "%s: samples are called by their row: %d of %d have no path that is theirs alone and "
            "fits a key (first: row %d, %s)",
            source, len(unnamed), len(names), unnamed[0], repr(first) if first else "none",
        )  # fmt: skip
        names = [f"{row:08d}" for row in range(len(names))]
    return names, labels


def _rows(path: Path, layout: Layout, where: str) -> Iterator[Row]:
    """Yield the picture, its path and its label of each row."""
    import pyarrow as pa

    reader = parquet if where.lower().endswith(".parquet") else arrow
    inside = f"{layout.image}.path" in layout.leaves
    try:
        for batch in reader.batches(path, layout):
            columns = {name: batch.column(name) for name in batch.schema.names}
            for row in range(batch.num_rows):
                data, file = columns[layout.image][row].as_py(), None
                if layout.nested:
                    struct = data or {}
                    data, file = struct.get("bytes"), struct.get("path") if inside else None
                if layout.path:
                    file = columns[layout.path][row].as_py()
                yield data, file, columns[layout.label][row].as_py() if layout.label else None
    except (
        pa.ArrowException, ValueError, OSError, MemoryError, KeyError, IndexError, OverflowError
    ) as error:  # fmt: skip
        if isinstance(error, KdcacheError):
            raise
        raise _unreadable(where, error, describe_file(path)) from None


def _class(label: int | str | None, layout: Layout, row: int, where: str) -> int:
    """Return the class number of a row; NO_LABEL where it has none."""
    number = NO_LABEL if label is None else int(label)
    if not NO_LABEL <= number < (len(layout.class_names) or MAX_CLASSES):
        raise DataError(
            f"{where} has the class {number} in row {row:,}, expected 0 to "
            f"{(len(layout.class_names) or MAX_CLASSES) - 1:,}, or {NO_LABEL} of none. Correct "
            "the file, or name the column: --columns label=NAME."
        )
    return number


def _name(path: str) -> str:
    """Return a path without its extension, below its folder; "" if it cannot be a key."""
    parts = [part for part in re.split(r"[\\/]", path) if part not in ("", ".")]
    if path.startswith(("/", "\\")) or ".." in parts or ":" in path:
        parts = parts[-1:]  # of another machine, or a URL
    if not parts:
        return ""
    stem, _, extension = parts[-1].rpartition(".")
    name = "/".join([*parts[:-1], stem or extension])
    fits = "." not in (stem or extension) and len(name.encode("utf-8", "replace")) < MAX_KEY // 2
    return name if fits and name.isprintable() and ".." not in parts else ""


def _member(name: str, data: bytes) -> bytes:
    """Return a member of a tar, whose bytes depend on its name and data alone."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % _BLOCK)


def _unreadable(where: str, error: object, other: str = "") -> DataError:
    if isinstance(error, MemoryError):
        return DataError(host_memory.shortage_for(where, error))
    return DataError(f"cannot read {where}{other}: {error}. Fetch or write it again.")
