"""The work of stage 1: render views, ask the teacher, commit parts.

Work goes window by window (1,024 rows of the sample table, the unit of mixup). An image is read and
decoded once and rendered in several views by a thread pool, while the teacher is busy with the
window before. Nothing depends on which parts a worker was given or what was done before it.

Shapes: W rows of a window, G views of a group, S pixels a side.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools import codec, decode, render, samples, verify, views
from cache_tools.codec import Stored
from cache_tools.commits import Part
from cache_tools.errors import NonFinite
from cache_tools.shards import NO_LABEL, Images
from cache_tools.store import Store, probe_numbers
from pipeline.forward import Forward

U1 = NDArray[np.uint8]


@dataclass
class _Growing:
    """A part in the making."""

    stored: list[Stored] = field(default_factory=list)
    probes: dict[int, int] = field(default_factory=dict)
    correct: list[float] = field(default_factory=list)
    top: list[float] = field(default_factory=list)


class Worker:
    """Makes parts of one cache with one teacher."""

    def __init__(
        self, store: Store, images: Images, forward: Forward, batch_size: int, threads: int
    ) -> None:
        """A worker on `images` in the order of the store's sample table."""
        self.store = store
        self._images = images
        self._forward = forward
        self._batch_size = batch_size
        self._seen = store.spec.views.for_teacher()
        self._reuse = decode.Reuse()
        self._renderers = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="window")

    def make(self, block: int, view_numbers: list[int], done: Callable[[int], None]) -> None:
        """Make and commit the parts of one block in several views.

        Args:
            block: Block of the sample table.
            view_numbers: The group of views, rendered from the same decoded images.
            done: Called with the number of views finished.

        Raises:
            NonFinite: The teacher said NaN or Inf; the part is not committed.
            DataError, CacheMismatch: An image cannot be read or is not the one it was.
        """
        growing = {view: _Growing() for view in view_numbers}
        probes = set(probe_numbers(self.store.spec.rows(block)))
        for rows, pixels in self._windows(block, view_numbers):
            for view, pixels_W in zip(view_numbers, pixels, strict=True):
                self._ask(rows, view, pixels_W, growing[view])
                for row in probes.intersection(rows):
                    growing[view].probes[row] = self._probe(row, view, pixels_W[row - rows.start])
                done(len(rows))
        for view, part in growing.items():
            self._commit(Part(view, block), part)

    def close(self) -> None:
        """Stop the threads; work that has not begun is dropped."""
        self._ahead.shutdown(cancel_futures=True)
        self._renderers.shutdown(cancel_futures=True)

    def _windows(self, block: int, view_numbers: list[int]) -> Iterator[tuple[range, U1]]:
        """Windows of a block with their pixels [G, W, S, S, 3], one window ahead of the teacher."""
        rows, step = self.store.spec.rows(block), self.store.spec.window
        windows = [rows[i : i + step] for i in range(0, len(rows), step)]
        ahead: Future[U1] = self._ahead.submit(self._render, windows[0], view_numbers)
        for window, following in zip(windows, [*windows[1:], None], strict=True):
            pixels = ahead.result()
            if following is not None:
                ahead = self._ahead.submit(self._render, following, view_numbers)
            yield window, pixels

    def _render(self, rows: range, view_numbers: list[int]) -> U1:
        spec, table = self._seen, self.store.table
        part = slice(rows.start, rows.stop)
        sizes = table.height_N[part], table.width_N[part]
        params = [views.draw(spec, table.id_N[part], *sizes, view) for view in view_numbers]
        out = np.empty((len(view_numbers), len(rows), spec.size, spec.size, 3), dtype=np.uint8)

        def one(position: int) -> None:
            number = rows[position]
            data = self._images.read(number)
            samples.check_digest(table, number, data)
            wanted = [(view, position, out[g, position]) for g, view in enumerate(params)]
            render.views_of(data, table.keys[number], spec, wanted, self._reuse)

        for _ in self._renderers.map(one, range(len(rows))):
            pass
        return out

    def _probe(self, row: int, view: int, pixels: U1) -> int:
        """Fingerprint of a view as students see it, whatever size the teacher saw it at."""
        if self._seen is self.store.spec.views:
            return render.fingerprint(pixels)
        return verify.probe(self.store, self._images, row, view)

    def _ask(self, rows: range, view: int, pixels: U1, part: _Growing) -> None:
        """The teacher on one window of one view, batch by batch."""
        spec = self.store.spec
        mix = None
        if spec.views.mixes:
            ids = self.store.table.id_N[rows.start : rows.stop]
            mix = views.mix(self._seen, ids, view)
        labels = self._labels(rows, mix)
        for begin in range(0, len(rows), self._batch_size):
            batch = slice(begin, min(begin + self._batch_size, len(rows)))
            part_of = mix and views.Mix(mix.partner_B[batch], mix.lam_B[batch], mix.cut_B4[batch])
            other = None if part_of is None else pixels[part_of.partner_B]
            said = self._forward(pixels[batch], other, part_of, labels[batch])
            sparse = codec.Sparse(*(t.cpu().numpy() for t in said))
            self._refuse_nan(rows[batch], view, sparse.tail_BT)
            part.stored.append(codec.encode(sparse, spec.targets, spec.teacher.num_classes))
            part.top.append(float(sparse.probability_BK[:, 0].sum()))
            if mix is None and NO_LABEL not in labels[batch]:
                hit = sparse.index_BK[:, 0] == labels[batch, 0]
                part.correct.append(float(hit.sum()))

    def _labels(self, rows: range, mix: views.Mix | None) -> NDArray[np.int64]:
        """[W, 1 or 2] label of each view of a window and, where views are mixed, its partner's."""
        own = self.store.table.label_N[rows.start : rows.stop].astype(np.int64)
        return np.stack([own] if mix is None else [own, own[mix.partner_B]], axis=1)

    def _refuse_nan(self, rows: range, view: int, tail: NDArray[np.float32]) -> None:
        bad = np.flatnonzero(~np.isfinite(tail).all(axis=1))
        if len(bad):
            key, precision = self.store.table.keys[rows[bad[0]]], self.store.spec.teacher.precision
            raise NonFinite(
                f"the teacher said NaN or Inf of view {view} of {key!r} ({len(bad)} of {len(rows)} "
                f"in its batch). Nothing of this part was stored. Use a wider type than "
                f"{precision}, such as precision=fp32, or check the weights."
            )

    def _commit(self, part: Part, made: _Growing) -> None:
        numbers = self.store.spec.rows(part.block)
        rows = len(numbers)
        stored = codec.concatenate(made.stored)
        statistics = {
            "kept_classes": len(stored.code_E) / rows,
            "tail_mass": float(codec.tail_levels()[stored.tail_TB[0]].mean(dtype=np.float64)),
            "max_probability": sum(made.top) / rows,
        }
        if made.correct:
            statistics["teacher_top1"] = 100.0 * sum(made.correct) / rows
        rounded = {name: round(value, 6) for name, value in statistics.items()}
        probes = np.array([made.probes[n] for n in probe_numbers(numbers)], dtype=np.uint64)
        self.store.write(part, stored, probes, rounded, self._versions())

    def _versions(self) -> dict[str, str]:
        device = self._forward.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        libraries = {
            package: version(package) for package in ("torch", "timm", "zarr", "numcodecs")
        }
        return {**render.versions(), **libraries, "device": name}
