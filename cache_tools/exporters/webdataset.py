"""Export as WebDataset shards: a column of soft labels beside that of the images.

    OUT/soft-0000.tar    key.kd.npz per sample: the arrays of `ExportBlock`, views in front

WebDataset's own decoder reads an .npz; samples are in the order of the sample table, to whose rows
`partner` refers.
"""

import io
import tarfile

import numpy as np

from cache_tools.data import shard_writer
from cache_tools.errors import DataError
from cache_tools.exporters import base
from cache_tools.store.cache import Cache

SUFFIX = "kd.npz"


def names(store: Cache, per_shard: int) -> dict[str, range]:
    """Return the shards and the rows of the table in each.

    Raises:
        DataError: WebDataset would cut a key.
    """
    for key in store.table.keys:
        if "." in key.rpartition("/")[2] or key.startswith("/"):
            raise DataError(
                f"the key {key!r} has a dot, where WebDataset would end it. Use --to parquet."
            )
    return base.shard_names(store, per_shard, ".tar")


def encode(block: base.ExportBlock, rows: range) -> bytes:
    """Encode some samples of a block as a shard."""
    each = [
        block.targets(view, rows) | block.views(view, rows) for view in range(block.store.num_views)
    ]
    stacked = {name: np.stack([one[name] for one in each]) for name in each[0]}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for at, row in enumerate(rows):
            data = io.BytesIO()
            columns = {name: values[:, at] for name, values in stacked.items()}
            np.savez(data, allow_pickle=False, **columns)
            shard_writer.add(tar, f"{block.store.table.keys[row]}.{SUFFIX}", data.getvalue())
    return buffer.getvalue()
