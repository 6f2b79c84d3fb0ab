"""Parameters and mixing of a cache's views, whether drawn from its spec or imported with it.

All that renders, mixes or describes views of a cache takes their parameters here.

Shapes: R rows of the sample table, N samples.
"""

import numpy as np

from cache_tools.errors import UsageError
from cache_tools.numerics import field_arrays
from cache_tools.numerics.array_types import I8
from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.views import draw
from cache_tools.views.draw import MixParams, ViewParams
from cache_tools.views.imported import ImportedViews


def parameters(
    store: Cache, view: int, row_R: I8, partner: bool = False, spec: ViewSpec | None = None
) -> ViewParams:
    """Compute parameters of one view of some samples, before mixing.

    Args:
        store: The cache.
        view: View number.
        row_R: Rows of the sample table.
        partner: True for the partners' pictures, where these are no views of the partners' own:
            see `has_partner_params`.
        spec: The augmentation that is drawn; None: the cache's, as students see it.

    Raises:
        CacheIncomplete, CacheDamaged: Imported parameters cannot be read.
    """
    if store.spec.imported is not None:
        params = _imported(store, view, row_R).side(int(partner), store.spec)
    else:
        table = store.table
        columns = table.id_N[row_R], table.height_N[row_R], table.width_N[row_R]
        spec = spec or store.spec.views
        erase_ids = None
        if spec.mixes and spec.re_prob and store.spec.renderer != "kernels-1":
            erase_ids = table.id_N[_first_of_pairs(store, view, row_R, spec)]
        params = draw.draw(spec, *columns, view, erase_ids)
    return params.of_renderer(store.spec.renderer)


def at_size(store: Cache, size: int) -> ViewSpec:
    """Return the augmentation of a cache's views at `size` pixels; 0 = the cache's own.

    Raises:
        UsageError: The views were imported, with operations and boxes in pixels of their own size.
    """
    spec = store.spec
    if spec.imported is not None and size not in (0, spec.views.size):
        raise UsageError(
            f"size={size} cannot be: the views of {store.name} were imported from "
            f"{spec.imported.origin}, and their operations and boxes count pixels of "
            f"{spec.views.size} px. Leave size out, or make a cache whose views are drawn."
        )
    return spec.views.at(size)


def has_partner_params(store: Cache) -> bool:
    """Check for parameters of partners, which imported caches that mix have."""
    return store.spec.imported is not None and store.spec.views.mixes


def mixing(
    store: Cache, view: int, begin: int = 0, end: int | None = None, drawn: ViewSpec | None = None
) -> MixParams:
    """Compute the mixing of a view of rows `begin` (a multiple of the window) to `end` (None: all).

    Partners are rows of the sample table; `drawn` as the `spec` of `parameters`.
    """
    spec, end = store.spec, len(store.table) if end is None else end
    drawn = drawn or spec.views
    if spec.imported is not None and spec.views.mixes:
        return _imported(store, view, np.arange(begin, end)).mix(spec)
    ids, begins = store.table.id_N[:end], range(begin, end, spec.window)
    windows = [draw.mix(drawn, ids[b : b + spec.window], view) for b in begins]
    return MixParams(
        np.concatenate([b + w.partner_B for b, w in zip(begins, windows, strict=True)]),
        np.concatenate([w.lam_B for w in windows]),
        np.concatenate([w.cut_B4 for w in windows]),
    )


def mixing_of(store: Cache, view: int, row_B: I8, drawn: ViewSpec | None = None) -> MixParams:
    """Compute how one view of some neighbouring, ascending rows is mixed; as `mixing`."""
    window, last = store.spec.window, int(row_B[-1])
    begin = int(row_B[0]) // window * window
    end = min((last // window + 1) * window, len(store.table))
    return mixing(store, view, begin, end, drawn).rows(row_B - begin)


def _first_of_pairs(store: Cache, view: int, row_R: I8, spec: ViewSpec) -> I8:
    """Return of each row and its partner the first, which draws the erasing of both."""
    window, ids = store.spec.window, store.table.id_N
    window_R = row_R // window
    begin = int(window_R.min()) * window
    first = np.arange(begin, (int(window_R.max()) + 1) * window)
    for start in (np.unique(window_R) * window).tolist():
        partner = start + draw.mix(spec, ids[start : start + window], view).partner_B
        at = slice(start - begin, start - begin + len(partner))
        first[at] = np.minimum(first[at], partner)
    return first[row_R - begin]


def _imported(store: Cache, view: int, row_R: I8) -> ImportedViews:
    """Read stored parameters of some rows, block by block."""
    block_R = row_R // store.spec.block_size
    pieces, order = [], []
    for block in np.unique(block_R).tolist():
        where = np.flatnonzero(block_R == block)
        at = row_R[where] - block * store.spec.block_size
        pieces.append(store.read_params(Part(view, block)).rows(at))
        order.append(where)
    if len(pieces) == 1:
        return pieces[0]
    found = field_arrays.concatenate(pieces)
    return found.rows(np.argsort(np.concatenate(order), kind="stable"))
