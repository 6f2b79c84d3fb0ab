"""`kdcache select` and `pull`: a part of a cache as a cache, without teacher and images.

* **Views** 0:50 are parts as they are, with their records; the fingerprint stays. A view keeps its
  number, since its number says its pixels: of views 50:100 the first fifty are missing parts, for
  `kdcache merge` to add.
* **Samples** make another sample table and with it another fingerprint: that of a cache which the
  teacher would have written of these samples alone, and the targets are its bytes. A share such as
  0.1 is the beginning of the table, which is as good as drawn, ids being hashes. Where views are
  mixed, a sample and its partner stay together: whole windows of the table are taken.
  Imported views that are mixed have partners anywhere in the table: nothing can be left out.
* **Classes**: of each view the most probable ones; what is left out joins the stored masses. Codes
  stay as they are, so nothing is rounded twice but those masses, and `cut_from` in the spec says of
  what it was cut.

A cut is made part by part from wherever the cache lies; run again, it goes on.

Shapes: N samples, B views of a part, K slots, T temperatures, P labels of a view.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.combine import assemble
from cache_tools.combine.assemble import PartBuilder
from cache_tools.errors import UsageError
from cache_tools.file_contents import MAX_JSON, read_text
from cache_tools.numerics.array_types import I8
from cache_tools.spec.cache import CacheSpec
from cache_tools.spec.canonical import canonical_json, sha256
from cache_tools.spec.sample_table import MAX_KEY, SampleTable
from cache_tools.spec.targets import TargetSpec
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, dense, gradient_error
from cache_tools.targets.codec import EncodedTargets
from cache_tools.targets.gradient_error import Use
from cache_tools.targets.keep import checked, parse

_ROWS = 4096


@dataclass(frozen=True)
class Selection:
    """Selection of views, samples and classes of a cache."""

    views: range
    """View numbers."""
    row_N: I8 | None
    """Rows of its sample table, ascending; None: all."""
    spec: CacheSpec
    """Spec of the result."""
    keeps: TargetSpec | None
    """The cache's own targets, when fewer classes are kept of them; else None."""

    @property
    def verbatim(self) -> bool:
        """True if parts are copied unchanged."""
        return self.row_N is None and self.keeps is None


def plan(store: Cache, views: str = "", wanted: str = "", keep: str = "") -> Selection:
    """Parse the selection of a command line.

    Args:
        store: The cache.
        views: Such as "0:50", "50:" or "7"; "" takes all.
        wanted: A share such as "0.1", or a file with a key per line; "" takes all samples.
        keep: Such as "k=10", "tau=1e-2" or both; "" keeps all classes.

    Raises:
        UsageError: Something that cannot be read, or more than the cache has.
    """
    spec, rows = store.spec, _rows(store, wanted) if wanted else None
    if rows is not None and len(rows) == spec.dataset.num_samples:
        rows = None
    if rows is not None:
        few = table_of(store.table, rows)
        dataset = replace(spec.dataset, num_samples=len(few), table_sha256=few.sha256)
        spec = replace(spec, dataset=dataset, block_size=min(spec.block_size, len(few)))
    keeps = None
    if keep and (targets := _targets(spec.targets, keep)) != spec.targets:
        keeps = spec.targets
        origin = sha256(canonical_json([spec.mapping["targets"], spec.cut_from]))
        spec = replace(spec, targets=targets, cut_from=origin)
    return Selection(_views(views, store.num_views), rows, spec, keeps)


def shortfalls(cut: Cache, keep: str, source: str) -> list[str]:
    """Describe the declared temperatures for which a cut of `source` by `--keep` is too small."""
    first, spec = next(filter(cut.present, cut.parts())), cut.spec.targets
    sample = CacheEnsemble((cut,), (1.0,)).sample(first.view, first.block)
    uses = [Use(t, t, few=f"--keep {keep}") for t in spec.temperatures]
    return gradient_error.shortfalls(sample, spec, cut.spec.teacher.num_classes, uses, source)


def table_of(table: SampleTable, row_N: I8) -> SampleTable:
    """Select rows of a sample table."""
    columns = (getattr(table, f"{c}_N")[row_N] for c in SampleTable.COLUMNS)
    return SampleTable(tuple(table.keys[i] for i in row_N.tolist()), *columns)


def places(cut: Selection, part: Part) -> tuple[I8, I8]:
    """[B] rows of the cache that a part of its cut is made of, and rows of the cut."""
    rows = cut.spec.rows(part.block)
    new_B = np.arange(rows.start, rows.stop)
    return (new_B if cut.row_N is None else cut.row_N[new_B]), new_B


def make(builder: PartBuilder, cut: Selection, out: Cache, part: Part) -> None:
    """Make and commit one part of a cut that is not verbatim."""
    row_B, new_B = places(cut, part)
    made = builder.gather(part.view, np.zeros_like(row_B), row_B, new_B)
    stored, params = made.stored, made.params
    if cut.keeps is not None:
        label_BP, pieces = assemble.labels(out, part, params), []
        for begin in range(0, len(stored), _ROWS):
            few_B = np.arange(begin, min(begin + _ROWS, len(stored)))
            pieces.append(
                drop_classes(codec.select_rows(stored, few_B), cut.keeps, cut.spec, label_BP[few_B])
            )
        stored = codec.concatenate(pieces)
    probes = made.probes(out.spec, out.spec.rows(part.block))
    facts = assemble.statistics(out, part, stored, params)
    out.write(part, stored, probes, facts, assemble.versions(made.versions, "select"), params)


def drop_classes(
    stored: EncodedTargets, of: TargetSpec, spec: CacheSpec, label_BP: I8
) -> EncodedTargets:
    """Targets with fewer classes kept."""
    wanted, classes = spec.targets, spec.teacher.num_classes
    targets = codec.decode(stored, of)
    p_BK, index_BK = targets.probability_BK.astype(np.float64), targets.index_BK
    kept_BK = dense.kept_mask(p_BK, wanted)
    kept_BK &= p_BK > 0
    dropped_BK = np.where(kept_BK, 0.0, p_BK)
    changed_B = (dropped_BK > 0).any(axis=1)
    tail_BT = targets.tail_BT.astype(np.float64)
    dense.extend_tail(tail_BT, p_BK, dropped_BK, of.temperatures)
    labels = label_BP[:, : stored.true_PB.shape[0]]
    gone_BPK = (index_BK[:, None, :] == labels[:, :, None]) & (dropped_BK > 0)[:, None, :]
    true_BP = targets.true_BP + (gone_BPK * dropped_BK[:, None, :]).sum(axis=2)
    square_BQ = targets.square_BQ + np.square(dropped_BK).sum(axis=1)[:, None]
    rest = codec.encode_rest(tail_BT, true_BP, square_BQ, kept_BK.sum(axis=1) == classes)
    as_was = stored.tail_TB, stored.true_PB, stored.square_QB
    tail, true, square = (np.where(changed_B, *pair) for pair in zip(rest, as_was, strict=True))
    full_BK = np.arange(p_BK.shape[1]) < stored.count_B[:, None]
    code_BK = np.zeros(p_BK.shape, dtype=np.uint8)
    code_BK[full_BK] = stored.code_E
    count_B = kept_BK.sum(axis=1)
    index_E = index_BK[kept_BK].astype(np.int64) + 1
    first_E = np.cumsum(count_B) - count_B
    delta_E = np.diff(index_E, prepend=0)
    delta_E[first_E] = index_E[first_E]
    narrow: NDArray[np.unsignedinteger] = delta_E.astype(codec.index_dtype(classes))
    return EncodedTargets(count_B.astype(np.uint16), narrow, code_BK[kept_BK], tail, true, square)


def _views(text: str, count: int) -> range:
    found = re.fullmatch(r"(\d*)(:?)(\d*)", text.strip())
    if not found:
        raise UsageError(f"--views {text} cannot be read. It is such as 0:50, 50: or 7.")
    begin = int(found[1] or 0)
    end = int(found[3] or count) if found[2] or not found[1] else begin + 1
    if not 0 <= begin < end <= count:
        raise UsageError(f"--views {text}: the cache has the views 0:{count}. Choose among those.")
    return range(begin, end)


def _rows(store: Cache, wanted: str) -> I8:
    """Rows of the table that `--samples` names."""
    spec, count = store.spec, store.spec.dataset.num_samples
    mixes = spec.replayable and spec.views.mixes
    if mixes and spec.imported is not None:
        raise UsageError(
            f"the views of {store.name} came from {spec.imported.origin} and are mixed with "
            "samples from anywhere in it: of fewer samples, partners would be missing. Leave "
            "--samples out; --views and --keep can cut it."
        )
    if re.fullmatch(r"[0-9.eE+-]+", wanted) and not Path(wanted).is_file():
        try:
            share = float(wanted)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise UsageError(f"--samples {wanted} is no share of the samples, such as 0.1.")
        last = max(1, round(share * count))
        last = min(count, -(-last // spec.window) * spec.window) if mixes else last
        return np.arange(last)
    row_N = _rows_of(store, Path(wanted))
    for at in assemble.windows(spec, len(row_N)) if mixes else ():
        first = int(row_N[at][0]) // spec.window * spec.window
        if not np.array_equal(row_N[at], np.arange(first, min(first + spec.window, count))):
            raise UsageError(
                f"views of {store.name} are mixed within windows of {spec.window} samples, and "
                f"some of that of {store.table.keys[int(row_N[at][0])]!r} are not selected: the "
                "targets would be of other pixels. Pass a share such as --samples 0.1, which "
                "takes whole windows."
            )
    return row_N


def _rows_of(store: Cache, path: Path) -> I8:
    """Rows of the keys in a file."""
    most = MAX_JSON + MAX_KEY * len(store.table)
    try:
        keys = [line for line in read_text(path, most).split("\n") if line]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--samples {path} is neither a share such as 0.1 nor a file of keys ({error})."
        ) from None
    row_of = {key: row for row, key in enumerate(store.table.keys)}
    if unknown := [key for key in keys if key not in row_of]:
        raise UsageError(
            f"{len(unknown)} of {len(keys)} keys in {path} are not in {store.name} (first: "
            f"{unknown[0]!r}; its own are such as {store.table.keys[0]!r})."
        )
    if not keys:
        raise UsageError(f"there is no key in {path}; it has one a line.")
    return np.array(sorted({row_of[key] for key in keys}), dtype=np.int64)


def _targets(of: TargetSpec, keep: str) -> TargetSpec:
    """Sparsity of a cut: that of a cache, and what `--keep` takes away."""
    wanted = parse(keep, ("k", "k_max", "k_min", "tau"))
    k_max = of.k_max if wanted.most is None else wanted.most
    tau = of.tau if wanted.tau is None else wanted.tau
    new_threshold = of.tau == 0 and tau > 0
    k_min = wanted.k_min
    if k_min is None:
        k_min = 1 if new_threshold else min(of.k_min, k_max)
    known = of.k_max if of.tau == 0 else of.k_min
    for name, count, most in (("k", k_max, of.k_max), ("k_min", k_min, known)):
        if count > most:
            raise UsageError(
                f"--keep {keep}: {name} can be at most {most}; the cache has no more classes of "
                "every view. Only its teacher has."
            )
    if tau < of.tau:
        raise UsageError(
            f"--keep {keep}: tau must be at least {of.tau:g}; classes below are not in the cache."
        )
    return checked(of, keep, k_max=k_max, k_min=k_min, tau=tau)
