"""The views of a cache, whether they are drawn from its spec or were imported with it.

Whoever renders views of a cache asks here for their parameters and how they are mixed.

Shapes: R rows of the sample table, N samples.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw
from cache_tools.views.draw import Mix, Views
from cache_tools.views.imported import Imported

I8 = NDArray[np.int64]


def parameters(store: Cache, view: int, row_R: I8, side: int = 0) -> Views:
    """Parameters of one view of some samples, before mixing.

    Args:
        store: The cache.
        view: View number.
        row_R: Rows of the sample table.
        side: 1: of their partners, as far as these differ from the partners' own views: see
            `has_sides`.

    Raises:
        CacheIncomplete, CacheDamaged: Imported parameters cannot be read.
    """
    if store.spec.imported is not None:
        return _imported(store, view, row_R).side(side, store.spec)
    table = store.table
    columns = table.id_N[row_R], table.height_N[row_R], table.width_N[row_R]
    return draw.draw(store.spec.views, *columns, view)


def has_sides(store: Cache) -> bool:
    """Whether the picture of a partner is no view of the partner's, but one of side 1."""
    return store.spec.imported is not None and store.spec.views.mixes


def mixing(store: Cache, view: int, begin: int = 0, end: int | None = None) -> Mix:
    """Mixing of one view of the rows `begin` (a multiple of the window) to `end` (None: all).

    Partners are rows of the sample table.
    """
    spec, end = store.spec, len(store.table) if end is None else end
    if spec.imported is not None and spec.views.mixes:
        return _imported(store, view, np.arange(begin, end)).mix(spec)
    ids, begins = store.table.id_N[:end], range(begin, end, spec.window)
    windows = [draw.mix(spec.views, ids[b : b + spec.window], view) for b in begins]
    return Mix(
        np.concatenate([b + w.partner_B for b, w in zip(begins, windows, strict=True)]),
        np.concatenate([w.lam_B for w in windows]),
        np.concatenate([w.cut_B4 for w in windows]),
    )


def _imported(store: Cache, view: int, row_R: I8) -> Imported:
    """Stored parameters of some rows, block by block."""
    block_R = row_R // store.spec.block_size
    pieces, order = [], []
    for block, where in _groups(block_R):
        at = row_R[where] - block * store.spec.block_size
        pieces.append(store.read_params(Part(view, block)).rows(at))
        order.append(where)
    if len(pieces) == 1:
        return pieces[0]
    return Imported.concatenate(pieces).rows(np.argsort(np.concatenate(order), kind="stable"))


def _groups(block_R: I8) -> Iterator[tuple[int, I8]]:
    for block in np.unique(block_R).tolist():
        yield block, np.flatnonzero(block_R == block)
