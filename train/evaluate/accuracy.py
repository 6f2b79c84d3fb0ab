"""Networks on a validation set: `evaluate_all` for the training loop, `judge` for `kdcache eval`.

`evaluate_all` counts what an epoch needs, on all processes; `judge` shows every picture to several
networks at once and counts everything, with one of them as the teacher that others are held
against.

Shapes: B pictures, S pixels a side, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache_tools.data.images import Images
from cache_tools.errors import NonFinite
from cache_tools.runtime import progress
from train.data.device_batch import Input, upload
from train.distributed import ALONE, World
from train.evaluate import crops, metrics
from train.evaluate.confusion import Saw
from train.evaluate.crops import Frame
from train.evaluate.metrics import Scores, Tally


@dataclass(frozen=True)
class Accuracy:
    """Shares of correct answers, in percent."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Network:
    """A network that can be asked about pictures."""

    name: str
    """What it is called in a table."""
    model: nn.Module
    """In evaluation mode, on the device of `feed`."""
    feed: Input
    """How pictures enter it."""
    frame: Frame
    """What it sees of a picture."""
    num_classes: int
    """C."""
    only_size: int = 0
    """The one size of pictures that it takes, in pixels; 0: any."""

    def takes(self, size: int) -> bool:
        """Whether it takes pictures of `size` pixels a side."""
        return self.only_size in (0, size)

    def logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        """[B, S, S, 3] RGB → [B, C] fp32."""
        return self.ask(self.feed.normalise(self.feed.upload(pixels)))

    def ask(self, x: Tensor) -> Tensor:
        """Normalised pictures [B, 3, S, S] → [B, C] fp32; NonFinite when there is no answer."""
        with self.feed.autocast():
            logits: Tensor = self.model(x)
        if not bool(logits.isfinite().all()):
            raise NonFinite(
                f"the {self.name} answers with NaN or Inf in {self.feed.precision}. Its weights "
                "are broken, or they overflow."
            )
        return logits.float()


def evaluate(
    model: nn.Module,
    images: Images,
    feed: Input,
    size: int,
    crop: float,
    world: World = ALONE,
) -> Accuracy:
    """Measure a model.

    Args:
        model: The network; it is left in evaluation mode.
        images: Labelled pictures.
        feed: How pictures enter the network.
        size: S.
        crop: Share of the shorter side that is kept.
        world: Processes that share the work.
    """
    return evaluate_all([(model, feed, Frame(size, crop))], images, world)[0]


@torch.inference_mode()
def evaluate_all(
    models: Sequence[tuple[nn.Module, Input, Frame]], images: Images, world: World = ALONE
) -> list[Accuracy]:
    """Measure several models on the same pictures, decoded once for all of them.

    Args:
        models: Networks, left in evaluation mode; how pictures enter each, and what it sees of one.
        images: Labelled pictures.
        world: Processes that share the work.
    """
    for model, _, _ in models:
        model.eval()
    images = images.subset(np.arange(world.rank, len(images), world.size))
    hits = np.zeros((len(models), 2))
    frames = [*dict.fromkeys(frame for _, _, frame in models)]
    with progress.bar("evaluate", len(images), "images") as advance:
        for numbers, seen in crops.batches(images, frames):
            uploaded = {
                f: upload(p, models[0][1].device) for f, p in zip(frames, seen, strict=True)
            }
            for i, (model, feed, frame) in enumerate(models):
                with feed.autocast():
                    logits = model(feed.normalise(uploaded[frame]))
                hit = metrics.ranked(logits).cpu().numpy() == images.label_N[numbers, None]
                hits[i] += hit[:, 0].sum(), hit.any(axis=1).sum()
            advance(len(seen[0]))
    *found, count = world.sum([*hits.ravel().tolist(), len(images)])
    pairs = zip(found[::2], found[1::2], strict=True)
    return [Accuracy(100.0 * top1 / count, 100.0 * top5 / count) for top1, top5 in pairs]


@torch.inference_mode()
def judge(
    networks: Sequence[Network],
    images: Images,
    allowed: Sequence[frozenset[int]] | None = None,
    teacher: Network | None = None,
    saw: Saw | None = None,
) -> dict[str, Scores]:
    """Measure networks on the same pictures, decoded once for all of them.

    Args:
        networks: Whom to measure.
        images: Labelled pictures.
        allowed: [N] ReaL labels of the pictures, or None.
        teacher: Whom the others are held against; it is measured, too.
        saw: Who is told of every answer, beside its label.

    Returns:
        Scores by the networks' names, the teacher's last.
    """
    asked = [*networks, *([teacher] if teacher else [])]
    tallies = [Tally() for _ in asked]
    frames = [*dict.fromkeys(network.frame for network in asked)]
    with progress.bar(f"evaluate on {images.source}", len(images), "images") as advance:
        for numbers, pixels in crops.batches(images, frames):
            seen = dict(zip(frames, pixels, strict=True))
            said = [network.logits(seen[network.frame]) for network in asked]
            label_B = torch.from_numpy(images.label_N[numbers].astype(np.int64))
            for tally, logits in zip(tallies, said, strict=True):
                tally.add(logits, label_B)
                if allowed is not None:
                    tally.add_real(logits, allowed[numbers])
            if saw is not None:
                for network, logits in zip(asked, said, strict=True):
                    saw(images.source, network.name, label_B, logits.argmax(1))
            if teacher is not None:
                for tally, logits in zip(tallies[:-1], said, strict=False):
                    agreed = logits.argmax(1) == said[-1].argmax(1)
                    tally.compare(agreed, metrics.divergence(said[-1], logits))
            advance(len(label_B))
    scores = [tally.scores() for tally in tallies]
    return {network.name: score for network, score in zip(asked, scores, strict=True)}
