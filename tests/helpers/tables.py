"""Tables of images as other programs write them: Parquet, and what `datasets` saves to disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Row = tuple[bytes | None, str | None, Any]
NAMES = ("crane", "kit fox", "tench")
"""Classes of the pictures, in an order that is that of folders, too."""


def picture(number: int) -> bytes:
    values = np.random.Philox(key=number).random_raw(8 * 8 * 3).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.repeat(values.reshape(8, 8, 3), 3, axis=0)))


ROWS: list[Row] = [(picture(i), f"img_{i}.JPEG", i % 3) for i in range(24)]
"""Pictures, their paths and their classes."""


def described(
    names: Sequence[str], image: str = "image", label: str = "label"
) -> dict[bytes, bytes]:
    """Metadata of a schema, as `datasets` writes them."""
    features = {
        image: {"_type": "Image"},
        label: {"names": [*names], "_type": "ClassLabel"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def table(
    rows: Sequence[Row], names: Sequence[str], image: str = "image", label: str = "label"
) -> Any:
    """Pictures as structs, and class numbers with their names in the schema."""
    pictures = [None if d is p is None else {"bytes": d, "path": p} for d, p, _ in rows]
    columns = [pa.array(pictures, IMAGE), pa.array([row[2] for row in rows], pa.int64())]
    made = pa.Table.from_arrays(columns, names=[image, label])
    return made.replace_schema_metadata(described(names, image, label))


def parquet(
    folder: Path, split: str, rows: Sequence[Row], names: Sequence[str], files: int, group: int = 4
) -> list[Path]:
    """Files of a split as on the Hub, with few rows in each of their row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(files):
        path = folder / f"{split}-{i:05d}-of-{files:05d}.parquet"
        begin, end = i * len(rows) // files, (i + 1) * len(rows) // files
        pq.write_table(table(rows[begin:end], names), path, row_group_size=group)
        paths.append(path)
    return paths


def arrow(path: Path, content: Any, stream: bool = True, **options: Any) -> Path:
    """Write an Arrow stream, as `datasets` does, or an Arrow file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with (
        path.open("wb") as out,
        new(out, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as w,
    ):
        for batch in content.to_batches(max_chunksize=3):
            w.write_batch(batch)
    return path


def saved(folder: Path, rows: Sequence[Row], names: Sequence[str], files: int = 2) -> Path:
    """Write a folder as `Dataset.save_to_disk` does."""
    found = []
    for i in range(files):
        begin, end = i * len(rows) // files, (i + 1) * len(rows) // files
        path = folder / f"data-{i:05d}-of-{files:05d}.arrow"
        found.append({"filename": arrow(path, table(rows[begin:end], names)).name})
    (folder / "state.json").write_text(json.dumps({"_data_files": found}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def plain(content: Sequence[Row], kind: Any = None) -> Any:
    """A table without structs and without a description."""
    return pa.table({
        "file_name": [row[1] for row in content],
        "image": pa.array([row[0] for row in content], kind or pa.binary()),
        "label": [row[2] for row in content],
    })  # fmt: skip


def hub(at: Path) -> Path:
    """Write ROWS as a repository of the Hub has them."""
    parquet(at / "data", "train", ROWS, NAMES, 3)
    return at
