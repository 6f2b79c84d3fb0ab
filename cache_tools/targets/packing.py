"""Inner loops of `codec`: entries of many views one after another, compiled, without the GIL.

Shapes: B views, K slots, E entries of B views.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.numerics.array_types import F4, F8, I4, I8, U1
from cache_tools.storage.compiled import njit

_SORT_BY_INSERTION = 48


@njit(nogil=True, cache=True, error_model="numpy")
def pack(
    index_BK: I8, p_BK: NDArray[np.floating], levels: int, delta_E: NDArray[Any], code_E: U1
) -> None:
    """Sort each view's kept classes by id and write differences and codes one after another."""
    ids = np.empty(index_BK.shape[1], np.int64)
    values = np.empty(index_BK.shape[1], np.float64)
    at = 0
    for b in range(index_BK.shape[0]):
        count = 0
        for k in range(index_BK.shape[1]):
            if index_BK[b, k] >= 0:
                ids[count], values[count] = index_BK[b, k], p_BK[b, k]
                count += 1
        _sort(ids[:count], values[:count])
        before = np.int64(-1)
        for k in range(count):
            delta_E[at + k] = ids[k] - before
            before = ids[k]
            p = min(max(values[k], 0.0), 1.0)
            code_E[at + k] = max(1, int(np.rint(levels * np.sqrt(np.sqrt(p)))))
        at += count


@njit(nogil=True, cache=True, error_model="numpy")
def merge_entries(
    index_BX: I8, value_BX: F8, floor_B: F8, index_BK: I8, sum_BK: F8, count_B: I8
) -> None:
    """Merge equal ids of each view: distinct ids, ascending, with `floor` plus their summed values.

    Args:
        index_BX: Class ids in any order, with repeats; -1 in unused slots.
        value_BX: Their values.
        floor_B: Initial value of each sum.
        index_BK: Zeros, written; K is at least the number of distinct ids.
        sum_BK: Zeros, written; at least 1e-30, since 0 marks an empty slot.
        count_B: Written: the number of distinct ids.
    """
    ids = np.empty(index_BX.shape[1], np.int64)
    values = np.empty(index_BX.shape[1], np.float64)
    for b in range(index_BX.shape[0]):
        used = 0
        for x in range(index_BX.shape[1]):
            if index_BX[b, x] >= 0:
                ids[used], values[used] = index_BX[b, x], value_BX[b, x]
                used += 1
        _sort(ids[:used], values[:used])
        k = -1
        for x in range(used):
            if x == 0 or ids[x] != ids[x - 1]:
                k += 1
                index_BK[b, k], sum_BK[b, k] = ids[x], floor_B[b]
            sum_BK[b, k] += values[x]
        for slot in range(k + 1):
            sum_BK[b, slot] = max(sum_BK[b, slot], 1e-30)
        count_B[b] = k + 1


@njit(nogil=True, cache=True, error_model="numpy")
def _sort(ids: I8, values: F8) -> None:
    """Sort both by id in place; insertion is the fastest for the few classes of a usual view."""
    if ids.size > _SORT_BY_INSERTION:
        order = np.argsort(ids)
        ids[:], values[:] = ids[order], values[order]
        return
    for i in range(1, ids.size):
        own, value, j = ids[i], values[i], i
        while j > 0 and ids[j - 1] > own:
            ids[j], values[j] = ids[j - 1], values[j - 1]
            j -= 1
        ids[j], values[j] = own, value


@njit(nogil=True, cache=True, error_model="numpy")
def unpack(
    row_B: I8,
    begin_B1: I8,
    delta_E: NDArray[Any],
    code_E: U1,
    levels: F4,
    tail_B: F4,
    index_BK: I4,
    p_BK: F4,
) -> None:
    """Write ids and probabilities of some views into slots; no view keeps more than K classes."""
    for b in range(row_B.size):
        begin, end = begin_B1[row_B[b]], begin_B1[row_B[b] + 1]
        index, total = np.int64(-1), 0.0
        for e in range(begin, end):
            index += np.int64(delta_E[e])
            index_BK[b, e - begin] = index
            total += levels[code_E[e]]
        scale = (1.0 - tail_B[b]) / total
        for e in range(begin, end):
            p_BK[b, e - begin] = levels[code_E[e]] * scale
        for k in range(end - begin, index_BK.shape[1]):
            index_BK[b, k] = 0
            p_BK[b, k] = 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def look_up(row_B: I8, code_XN: U1, levels: F4, value_BX: F4) -> None:
    """Write the values of the codes of some views; X values of each."""
    for b in range(row_B.size):
        for x in range(code_XN.shape[0]):
            value_BX[b, x] = levels[code_XN[x, row_B[b]]]
