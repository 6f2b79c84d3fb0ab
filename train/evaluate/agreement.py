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

from cache_tools.data.images import ImageDataset
from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.numerics.array_types import I8, U1
from cache_tools.runtime import progress, threads
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.spec.views import ViewSpec
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.store.sampling import sample_views
from cache_tools.targets import codec
from cache_tools.targets.codec import EncodedTargets
from cache_tools.targets.statistics import most_probable
from cache_tools.verify import probes
from cache_tools.views import draw
from train.data.loader import Batch
from train.evaluate.accuracy import Network
from train.evaluate.confusion import OnPrediction
from train.evaluate.metrics import Scores, Tally
from train.loss import losses

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
    images: ImageDataset,
    count: int,
    on_prediction: OnPrediction | None = None,
    size: int = 0,
) -> CacheAgreement:
    """Compare networks with the stored targets of `count` views; of all, if there are fewer.

    The images are in the order of the cache's table; `on_prediction` is called with the teacher's
    first class and the predictions of every batch. Views are rendered at `size` pixels a side, the
    networks' own; 0: at the cache's.

    Raises:
        CacheIncomplete, CacheDamaged, CacheMismatch: Naming the part or the sample.
    """
    chosen = sample_views(store.spec, list(store.parts()), count)
    total = sum(len(rows) for _, rows in chosen)
    tallies, teacher = {network.name: Tally() for network in networks}, Tally()
    with progress.bar("compare on cached views", total, "views") as advance:
        for batch in _batches(store, images, chosen, view_params.at_size(store, size)):
            index_BK, p_BK = batch.targets.index_BK, batch.targets.probability_BK
            teacher_B = torch.from_numpy(most_probable(index_BK, p_BK)[0])
            own_B = batch.lam_B * 2 >= draw.LAMBDA_SCALE  # of two labels that with the larger share
            label_B = torch.from_numpy(np.where(own_B, batch.label_B, batch.partner_label_B))
            known_B = label_B != NO_LABEL
            teacher.add_hits((teacher_B == label_B)[known_B, None])
            for network in networks:
                x, targets = network.feed.batch(batch)
                logits_BC = network.forward(x)
                first_B = logits_BC.argmax(1).cpu()
                tally = tallies[network.name]
                tally.add_hits((first_B == label_B)[known_B, None])
                kl = losses.kd(logits_BC, targets)
                # codes may make two classes equal: no other one may exceed the student's
                here_BK = (index_BK == first_B.numpy()[:, None]) & (p_BK > 0)
                agrees_B = torch.from_numpy((p_BK * here_BK).max(axis=1) == p_BK.max(axis=1))
                tally.compare(agrees_B, kl.expand(len(first_B)))
                if on_prediction is not None:
                    on_prediction(store.name, network.name, teacher_B, first_B)
            advance(len(teacher_B))
    scores = {name: tally.scores() for name, tally in tallies.items()}
    return CacheAgreement(total, len(chosen), scores | {"teacher": teacher.scores()})


def _batches(
    store: Cache, images: ImageDataset, chosen: list[tuple[Part, I8]], views: ViewSpec
) -> Iterator[Batch]:
    """Batches of the chosen views as in training, rendered one batch ahead."""
    spec, label_N = store.spec, store.table.label_N
    renderer = ViewRenderer(images, views, store.table)

    def render(view: int, row_R: I8, picture_R: I8, partner: bool = False) -> U1:
        params = view_params.parameters(store, view, row_R, partner, views)
        pictures = pool.map(
            lambda at: renderer.render_one(int(picture_R[at]), params, at), range(len(row_R))
        )
        return np.stack(list(pictures))

    def make(part: Part, stored: EncodedTargets, row_B: I8) -> Batch:
        mix = view_params.mixing_of(store, part.view, row_B, views)
        if view_params.has_partner_params(store):
            others = render(part.view, row_B, mix.partner_B, partner=True)
            pictures = np.concatenate([render(part.view, row_B, row_B), others])
            partner_at = len(row_B) + np.arange(len(row_B))
        else:
            rows = np.concatenate([row_B, np.setdiff1d(mix.partner_B, row_B)])
            pictures, order = render(part.view, rows, rows), np.argsort(rows)
            partner_at = order[np.searchsorted(rows, mix.partner_B, sorter=order)]
        return Batch(
            pictures,
            partner_at if spec.views.mixes else None,
            mix.lam_B.astype(np.float32),
            mix.cut_B4,
            codec.decode(stored, spec.targets, row_B - spec.rows(part.block).start),
            label_N[row_B].astype(np.int64),
            label_N[mix.partner_B].astype(np.int64),
            spec.targets.temperatures,
            spec.teacher.num_classes,
            None if mix.outside_B is None else mix.outside_B.astype(np.float32),
        )

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(threads.cpu_count()) as pool:
        waiting: deque[Future[Batch]] = deque()
        for part, rows in chosen:
            probes.check_probes(store, images, part)
            stored = store.read(part)[0]
            for begin in range(0, len(rows), _BATCH):
                waiting.append(ahead.submit(make, part, stored, rows[begin : begin + _BATCH]))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
