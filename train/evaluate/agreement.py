"""Agreement of students with the stored targets on cached views.

A few thousand views, spread over parts of the cache, are drawn, rendered and mixed again, bit for
bit, and the students' predictions are compared with the stored targets: no teacher runs. The probes
of the selected parts are checked first.

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
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.sampling import mix as mix_of
from cache_tools.store.sampling import spread
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.verify import verify
from cache_tools.views import draw
from train.data.loader import Batch
from train.evaluate.accuracy import Network
from train.evaluate.confusion import OnPrediction
from train.evaluate.metrics import Scores, Tally
from train.loss import losses

U1 = NDArray[np.uint8]
I8 = NDArray[np.int64]
_BATCH = 64


@dataclass(frozen=True)
class CacheAgreement:
    """Scores on cached views."""

    views: int
    """Number of views."""
    parts: int
    """Number of parts that contain them."""
    scores: dict[str, Scores]
    """Scores by the networks' names; "teacher": those of the stored targets."""


@torch.inference_mode()
def measure(
    networks: Sequence[Network],
    store: Cache,
    images: Images,
    count: int,
    on_prediction: OnPrediction | None = None,
) -> CacheAgreement:
    """Compare networks with the stored targets of `count` views.

    Args:
        networks: Students, of the cache's classes.
        store: The cache.
        images: Its data set in the order of its table.
        count: Number of views; of a cache with fewer, all of them.
        on_prediction: Called with the teacher's first class and the predictions of every batch.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the part or the sample.
    """
    chosen = spread(store.spec, list(store.parts()), count)
    total = sum(len(rows) for _, rows in chosen)
    tallies, teacher = {network.name: Tally() for network in networks}, Tally()
    with progress.bar("compare on cached views", total, "views") as advance:
        for batch in _batches(store, images, chosen):
            teacher_B = _teacher_class(batch)
            label_B = _labels(batch)
            known_B = label_B != NO_LABEL
            teacher.add_hits((teacher_B == label_B)[known_B, None])
            for network in networks:
                x, targets = network.feed.batch(batch, store.spec.targets.temperatures)
                logits_BC = network.forward(x)
                first_B = logits_BC.argmax(1).cpu()
                tally = tallies[network.name]
                tally.add_hits((first_B == label_B)[known_B, None])
                kl = losses.kd(logits_BC, targets.soft)
                tally.compare(_agrees(batch, first_B), kl.expand(len(first_B)))
                if on_prediction is not None:
                    on_prediction(store.name, network.name, teacher_B, first_B)
            advance(len(teacher_B))
    scores = {name: tally.scores() for name, tally in tallies.items()}
    return CacheAgreement(total, len(chosen), scores | {"teacher": teacher.scores()})


def _labels(batch: Batch) -> Tensor:
    """Labels [B] with the larger share of each view."""
    own_B = batch.lam_B * 2 >= draw.LAM_ONE
    return torch.from_numpy(np.where(own_B, batch.label_B, batch.partner_label_B))


def _teacher_class(batch: Batch) -> Tensor:
    """Teacher's most probable class [B]."""
    best_B1 = batch.targets.probability_BK.argmax(axis=1)[:, None]
    return torch.from_numpy(np.take_along_axis(batch.targets.index_BK, best_B1, 1)[:, 0]).long()


def _agrees(batch: Batch, class_B: Tensor) -> Tensor:
    """Mask [B] of classes that no other class exceeds in the targets; codes may make two equal."""
    p_BK = batch.targets.probability_BK
    here_BK = (batch.targets.index_BK == class_B.numpy()[:, None]) & (p_BK > 0)
    return torch.from_numpy((p_BK * here_BK).max(axis=1) == p_BK.max(axis=1))


def _batches(store: Cache, images: Images, chosen: list[tuple[Part, I8]]) -> Iterator[Batch]:
    """Batches of the chosen views as in training, rendered one batch ahead."""
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
    store: Cache,
    images: Images,
    part: Part,
    stored: EncodedTargets,
    row_B: I8,
    renderers: ThreadPoolExecutor,
) -> Batch:
    """Pixels, mixing and targets of some rows of one part."""
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
    store: Cache,
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
