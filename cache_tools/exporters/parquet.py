"""Export as Parquet: a row per view, with lists of classes and probabilities.

    OUT/soft-0000.parquet    key, label, view, and the arrays of `ExportBlock` as lists

A file holds some samples; its row groups are views. pyarrow writes it (the extra `parquet`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import UsageError
from cache_tools.exporters import base
from cache_tools.store.cache import Cache


def names(store: Cache, per_shard: int) -> dict[str, range]:
    """Return the files and the rows of the table in each.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            "Parquet is written by pyarrow, which is not installed: pip install 'kdcache[parquet]'."
        ) from None
    return base.shard_names(store, per_shard, ".parquet")


def encode(block: base.ExportBlock, rows: range) -> bytes:
    """Encode some samples of a block as a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, sink = block.store, pa.BufferOutputStream()
    writer = None
    for view in range(store.num_views):
        arrays = block.targets(view, rows) | block.views(view, rows)
        count = arrays.pop("count")
        columns = {
            "key": pa.array(store.table.keys[rows.start : rows.stop], pa.string()),
            "label": pa.array(store.table.label_N[rows.start : rows.stop]),
            "view": pa.array(np.full(len(rows), view, dtype=np.int16)),
            "index": _ragged(arrays.pop("index"), count),
            "probability": _ragged(arrays.pop("probability"), count),
        }
        columns |= {name: _column(values) for name, values in arrays.items()}
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return bytes(sink.getvalue())


def _column(values: NDArray[Any]) -> Any:
    """Convert [R] to values, [R, …] to lists of one length each."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    width = int(np.prod(values.shape[1:]))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, width)


def _ragged(values_RK: NDArray[Any], count_R: NDArray[Any]) -> Any:
    """Convert the first `count` values of each row to a list."""
    import pyarrow as pa

    used = np.arange(values_RK.shape[1]) < count_R[:, None]
    ends = np.concatenate([[0], np.cumsum(count_R, dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values_RK[used]))
