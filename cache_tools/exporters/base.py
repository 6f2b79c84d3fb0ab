"""Decoded targets and view parameters of some samples, the input of every exporter.

Shapes: R samples, V views, K classes, T temperatures, L operations, E erased boxes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CacheIncomplete
from cache_tools.storage import seal
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.views.draw import LAMBDA_SCALE, ViewParams

Arrays = dict[str, NDArray[Any]]
DIGESTS = "_digests.json"
"""SHA-256 of the written files (`storage.seal`); readers of Parquet pass over such a name."""
_MEMORY = 2**28
"""Bytes of decoded views at once."""


@dataclass(frozen=True)
class ExportBlock:
    """One block of the sample table with the stored targets of all its views."""

    store: Cache
    number: int
    stored: Mapping[int, EncodedTargets]
    """By view."""

    @property
    def rows(self) -> range:
        """Rows of the sample table."""
        return self.store.spec.rows(self.number)

    def targets(self, view: int, rows: range) -> Arrays:
        """Decode the targets of one view of some samples, the most probable class first.

        Returns:
            `count` [R], `index` [R, K], `probability` [R, K] (0 in slots that are not used), and
            `tail` [R, T].
        """
        at = np.arange(rows.start, rows.stop) - self.rows.start
        found = codec.decode(self.stored[view], self.store.spec.targets, at)
        order = np.argsort(-found.probability_BK, axis=1, kind="stable")
        kind = codec.index_dtype(self.store.spec.teacher.num_classes)
        return {
            "count": self.stored[view].count_B[at],
            "index": np.take_along_axis(found.index_BK, order, axis=1).astype(kind),
            "probability": np.take_along_axis(found.probability_BK, order, axis=1),
            "tail": found.tail_BT,
        }

    def views(self, view: int, rows: range) -> Arrays:
        """Return the parameters of one view of some samples.

        Returns:
            `box` [R, 4] and `flip` [R]; if the views have them, `operation` [R, L], `argument`
            [R, L, 6], `erase` [R, E, 8]; of mixed views `partner` [R] (rows of the sample table),
            `lam` [R] and `cut` [R, 4], and of imported ones `weight` [R] and the parameters of
            the partner, `partner_box` and so on; `seed` [R] of imported ones that have seeds.
        """
        store, spec, row_R = self.store, self.store.spec, np.arange(rows.start, rows.stop)
        found = _by_name(view_params.parameters(store, view, row_R)) if spec.replayable else {}
        if spec.views.mixes:
            begin = rows.start // spec.window * spec.window
            mix, at = view_params.mixing(store, view, begin, self.rows.stop), row_R - begin
            lam = (mix.lam_B[at] / LAMBDA_SCALE).astype(np.float32)
            found |= {"partner": mix.partner_B[at], "lam": lam, "cut": mix.cut_B4[at]}
            if mix.outside_B is not None:
                found["weight"] = (mix.outside_B[at] / LAMBDA_SCALE).astype(np.float32)
        if view_params.has_partner_params(store):
            other = _by_name(view_params.parameters(store, view, row_R, partner=True))
            found |= {f"partner_{name}": values for name, values in other.items()}
        if spec.imported and spec.imported.seeds:
            params = store.read_params(Part(view, self.number))
            found["seed"] = params.seed_B[row_R - self.rows.start]
        return found


def _by_name(params: ViewParams) -> Arrays:
    """Return drawn parameters by name."""
    found: Arrays = {"box": params.box_B4, "flip": params.flip_B}
    if params.codes_BL.shape[1]:
        found |= {"operation": params.codes_BL, "argument": params.arguments_BL6}
    if params.erase_BE8.shape[1]:
        found["erase"] = params.erase_BE8
    return found


Encode = Callable[[ExportBlock, range], bytes]
"""Encodes some samples of a block as a file."""


def write(store: Cache, out: Path, todo: Mapping[str, range], encode: Encode) -> Iterator[int]:
    """Write each file and yield its number of samples; a block is read once.

    Raises:
        CacheIncomplete, CacheDamaged: A part is missing or damaged.
    """
    block = None
    for name, rows in sorted(todo.items(), key=lambda item: item[1].start):
        number = rows.start // store.spec.block_size
        if block is None or block.number != number:
            parts = [Part(view, number) for view in range(store.num_views)]
            block = ExportBlock(store, number, {part.view: store.read(part)[0] for part in parts})
        seal.write(out, name, encode(block, rows), DIGESTS)
        yield len(rows)


def one(store: Cache, number: int, view: int) -> Arrays:
    """Decode targets and seeds of one part."""
    rows, stored = store.spec.rows(number), store.read(Part(view, number))[0]
    block = ExportBlock(store, number, {view: stored})
    seed = {name: v for name, v in block.views(view, rows).items() if name == "seed"}
    return block.targets(view, rows) | seed


def check_whole(store: Cache) -> None:
    """Raise CacheIncomplete if a part is missing, before hours are spent on the others."""
    for part in store.parts():
        if not store.present(part):
            raise store.check_part(part) or CacheIncomplete(f"{part} of {store.name} is missing.")


def shard_names(store: Cache, most: int, suffix: str) -> dict[str, range]:
    """Return names of files with the rows of each, at most `most` samples of one block.

    Files have fewer samples if their views would take a quarter of a gigabyte.
    """
    per_view = 8 * store.spec.targets.k_max + 128
    most = max(1, min(most, _MEMORY // (store.num_views * per_view)))
    found = [
        range(begin, min(begin + most, rows.stop))
        for rows in map(store.spec.rows, range(store.spec.num_blocks))
        for begin in range(rows.start, rows.stop, most)
    ]
    digits = max(4, len(str(len(found) - 1)))
    return {f"soft-{i:0{digits}d}{suffix}": rows for i, rows in enumerate(found)}
