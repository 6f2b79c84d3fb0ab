"""Students on the cached views: do they say what the teacher said of the very same pixels?

A few thousand views, spread over parts of the cache, are drawn, rendered and mixed again, bit for
bit, and the student's answer is held against what is stored: no teacher runs. The pixels of the
parts that are looked at are proved by their probes first.

Shapes: B views, N samples, C classes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.data.images import Images
from cache_tools.render import view as render
from cache_tools.runtime import progress, threads
from cache_tools.spec import sample_table
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.store import view_params
from cache_tools.store.cache import Store
from cache_tools.store.commits import Part
from cache_tools.store.sampling import mix as mix_of
from cache_tools.store.sampling import spread
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.verify import verify
from cache_tools.views import draw
from train.data.native_loader import Batch
from train.evaluate.accuracy import Network
from train.evaluate.confusion import Saw
from train.evaluate.metrics import Scores, Tally
from train.loss import losses

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]
_BATCH = 64


@dataclass(frozen=True)
class Glance:
    """What was seen."""

    views: int
    """How many views."""
    parts: int
    """Of how many parts."""
    scores: dict[str, Scores]
    """By the networks' names, and "teacher" for what is stored."""


@torch.inference_mode()
def look(
    networks: Sequence[Network],
    store: Store,
    images: Images,
    count: int,
    saw: Saw | None = None,
) -> Glance:
    """Hold networks against the stored targets of `count` views.

    Args:
        networks: Students, of the cache's classes.
        store: The cache.
        images: Its data set in the order of its table.
        count: How many views; a cache with fewer is looked at as a whole.
        saw: Who is told of every answer, beside the teacher's first class.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the part or the sample.
    """
    chosen = spread(store.spec, list(store.parts()), count)
    total = sum(len(rows) for _, rows in chosen)
    tallies, teacher = {network.name: Tally() for network in networks}, Tally()
    with progress.bar("look at cached views", total, "views") as advance:
        for batch in _batches(store, images, chosen):
            said_B = _first(batch)
            label_B = _labels(batch)
            known_B = label_B != NO_LABEL
            teacher.add_hits((said_B == label_B)[known_B, None])
            for network in networks:
                x, asked = network.feed.batch(batch, store.spec.targets.temperatures)
                logits_BC = network.ask(x)
                first_B = logits_BC.argmax(1).cpu()
                tally = tallies[network.name]
                tally.add_hits((first_B == label_B)[known_B, None])
                kl = losses.kd(logits_BC, asked.soft)
                tally.compare(_agrees(batch, first_B), kl.expand(len(first_B)))
                if saw is not None:
                    saw(store.name, network.name, said_B, first_B)
            advance(len(said_B))
    scores = {name: tally.scores() for name, tally in tallies.items()}
    return Glance(total, len(chosen), scores | {"teacher": teacher.scores()})


def _labels(batch: Batch) -> Tensor:
    """[B] the label with the larger share of each view."""
    own_B = batch.lam_B * 2 >= draw.LAM_ONE
    return torch.from_numpy(np.where(own_B, batch.label_B, batch.partner_label_B))


def _first(batch: Batch) -> Tensor:
    """[B] the class that the teacher names first."""
    best_B1 = batch.targets.probability_BK.argmax(axis=1)[:, None]
    return torch.from_numpy(np.take_along_axis(batch.targets.index_BK, best_B1, 1)[:, 0]).long()


def _agrees(batch: Batch, class_B: Tensor) -> Tensor:
    """[B] whether the teacher finds no class more probable; codes may make two equal."""
    p_BK = batch.targets.probability_BK
    here_BK = (batch.targets.index_BK == class_B.numpy()[:, None]) & (p_BK > 0)
    return torch.from_numpy((p_BK * here_BK).max(axis=1) == p_BK.max(axis=1))


def _batches(store: Store, images: Images, chosen: list[tuple[Part, I8]]) -> Iterator[Batch]:
    """The chosen views as replay would show them, rendered one batch ahead."""
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(threads.cpu_count()) as renderers:
        waiting: deque[Future[Batch]] = deque()
        for part, rows in chosen:
            verify.check_probes(store, images, part)
            stored = store.read(part)[0]
            for begin in range(0, len(rows), _BATCH):
                piece = rows[begin : begin + _BATCH]
                waiting.append(ahead.submit(_batch, store, images, part, stored, piece, renderers))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batch(
    store: Store,
    images: Images,
    part: Part,
    stored: EncodedTargets,
    row_B: I8,
    renderers: ThreadPoolExecutor,
) -> Batch:
    """Some rows of one part: pixels, mixing and targets."""
    spec, label_N = store.spec, store.table.label_N
    mix = mix_of(store, part.view, row_B)
    if view_params.has_sides(store):
        both = (
            _render(store, images, part.view, row_B, picture_B, renderers, side)
            for side, picture_B in enumerate((row_B, mix.partner_B))
        )
        pictures, partner_at = np.concatenate([*both]), len(row_B) + np.arange(len(row_B))
    else:
        rows = np.concatenate([row_B, np.setdiff1d(mix.partner_B, row_B)])
        pictures = _render(store, images, part.view, rows, rows, renderers)
        order = np.argsort(rows)
        partner_at = order[np.searchsorted(rows, mix.partner_B, sorter=order)]
    return Batch(
        pictures,
        partner_at if spec.views.mixes else None,
        mix.lam_B.astype(np.float32),
        mix.cut_B4,
        codec.decode(stored, spec.targets, row_B - spec.rows(part.block).start),
        label_N[row_B].astype(np.int64),
        label_N[mix.partner_B].astype(np.int64),
        None if mix.outside_B is None else mix.outside_B.astype(np.float32),
    )


def _render(
    store: Store,
    images: Images,
    view: int,
    row_R: I8,
    picture_R: I8,
    renderers: ThreadPoolExecutor,
    side: int = 0,
) -> U1:
    """Pixels of one view of some rows; each picture's bytes are compared with their digest."""
    table, spec = store.table, store.spec.views
    params = view_params.parameters(store, view, row_R, side)
    out = np.empty((len(row_R), spec.size, spec.size, 3), dtype=np.uint8)

    def one(number: int) -> None:
        row = int(picture_R[number])
        data = images.read(row)
        sample_table.check_digest(table, row, data)
        render.views_of(data, table.keys[row], spec, [(params, number, out[number])])

    for _ in renderers.map(one, range(len(row_R))):
        pass
    return out
