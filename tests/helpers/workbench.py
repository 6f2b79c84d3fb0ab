"""Stage 1 of a cache without parts: its worker, and the same chunks made by loops."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cache_tools.data.images import ImageDataset
from cache_tools.render import view
from cache_tools.store.cache import Cache, probe_numbers
from cache_tools.store.layout import Layout
from cache_tools.targets import codec
from cache_tools.views import draw
from pipeline.teacher.forward import Forward
from pipeline.teacher.teacher import Teacher
from pipeline.worker import stage1
from pipeline.worker.groups import DecodeGroup, decode_groups
from pipeline.worker.stage1 import Stage1

CPU = torch.device("cpu")
COUNT, BATCH = 1100, 64
BLOCKS = ["views.size=16", "block_size=1024", "num_views=2", "views.mixup=0.5"]
WINDOWS = ["views.size=16", "block_size=2048", "num_views=2", "views.mixup=0.5"]


@dataclass
class Bench:
    """A cache without parts, its images and its teacher."""

    store: Cache
    images: ImageDataset
    network: Teacher

    def make(
        self,
        *wanted: DecodeGroup,
        forward: Forward | None = None,
        batch: int = BATCH,
        threads: int = 2,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[stage1.Failure]:
        worker = Stage1(self.store, self.images, forward or self.ask(), batch, threads)
        try:
            return worker.make(wanted or self.groups(2), done)
        finally:
            worker.close()

    def ask(self, kind: type[Forward] = Forward) -> Forward:
        return kind(self.network, self.store.spec.targets, CPU)

    def groups(self, size: int) -> list[DecodeGroup]:
        return decode_groups(list(self.store.parts()), size)

    def chunks(self) -> dict[str, bytes]:
        folder = self.store.path
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for name in ("targets", "probes")
            for file in (folder / name).rglob("c/**/*")
            if file.is_file()
        }


Opener = Callable[[list[str]], Bench]


class Counting(Forward):
    views = 0

    def __call__(self, pixels, partner, mix, label=None):  # type: ignore[no-untyped-def]
        self.views += len(pixels)
        return super().__call__(pixels, partner, mix, label)


def one_after_another(bench: Bench, batch: int) -> dict[str, bytes]:
    """Chunks of all parts, made by nothing but loops."""
    store, forward, chunks = bench.store, bench.ask(), {}
    spec, table = store.spec, store.table
    layout = Layout(spec, store.num_views)
    for made in store.parts():
        stored, fingerprints = [], {}
        rows = spec.rows(made.block)
        for begin in range(rows.start, rows.stop, spec.window):
            window = range(begin, min(begin + spec.window, rows.stop))
            of = slice(window.start, window.stop)
            params = draw.draw(
                spec.views, table.id_N[of], table.height_N[of], table.width_N[of], made.view
            )
            pixels = np.empty((len(window), 16, 16, 3), np.uint8)
            for i, row in enumerate(window):
                wanted = [(params, i, pixels[i])]
                view.render_views(bench.images.read(row), table.keys[row], spec.views, wanted)
                fingerprints[row] = view.fingerprint(pixels[i])
            mix = draw.mix(spec.views, table.id_N[of], made.view)
            own = table.label_N[of].astype(np.int64)
            labels = np.stack([own, own[mix.partner_B]], axis=1)
            for first in range(0, len(window), batch):
                at = slice(first, first + batch)
                part_of = draw.MixParams(mix.partner_B[at], mix.lam_B[at], mix.cut_B4[at])
                said = forward(pixels[at], pixels[part_of.partner_B], part_of, labels[at])
                sparse = codec.SparseTargets(*(t.numpy() for t in said))
                stored.append(codec.encode(sparse, spec.targets, 10))
        probes = np.array([fingerprints[n] for n in probe_numbers(rows)], np.uint64)
        whole = codec.concatenate(stored)
        chunks |= layout.encode_part(made.view, made.block, whole, probes)
    return chunks
