"""Accuracy of networks on a validation set.

`evaluate_all` serves the training loop: top-1 and top-5 on crops that are resized once, the images
shared among all processes. `evaluate_networks` serves `kdcache eval`: all scores on images as timm
prepares them, with a teacher as reference. Both decode an image once for all networks.

Shapes: B images, S pixels a side, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache_tools.data.images import ImageDataset
from cache_tools.errors import NonFinite
from cache_tools.runtime import progress
from cache_tools.targets import dense
from train.data.device_batch import InputTransform, upload
from train.distributed import ALONE, World
from train.evaluate import crops, metrics
from train.evaluate.confusion import OnPrediction
from train.evaluate.crops import Frame, TimmFrame
from train.evaluate.metrics import Scores, Tally


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent."""

    top1: float
    top5: float
    finite: bool = True
    """False if a logit was NaN or Inf."""


@dataclass(frozen=True)
class Network:
    """A network with its preprocessing."""

    name: str
    """Name in tables."""
    model: nn.Module
    """Module in evaluation mode, on the device of `feed`."""
    feed: InputTransform
    """Upload, normalisation and precision of its input."""
    frame: TimmFrame
    """Size, crop and filter of its input."""
    num_classes: int
    """C."""
    fixed_size: int = 0
    """Its only input size in pixels; 0: any size."""

    def accepts(self, size: int) -> bool:
        """Return True if inputs of `size` pixels a side are possible."""
        return self.fixed_size in (0, size)

    def logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Run on RGB pixels [B, S, S, 3]; returns [B, C] fp32."""
        return self.forward(self.feed.normalise(self.feed.upload(pixels)))

    def forward(self, x: Tensor) -> Tensor:
        """Run on normalised images [B, 3, S, S]; returns [B, C] fp32.

        Raises:
            NonFinite: The logits contain NaN or Inf.
            TeacherError: They are probabilities.
        """
        with self.feed.autocast():
            logits: Tensor = self.model(x)
        if not bool(logits.isfinite().all()):
            raise NonFinite(
                f"the {self.name} predicts NaN or Inf in {self.feed.precision}. Its weights are "
                "broken, or they overflow."
            )
        dense.refuse_probabilities(f"the {self.name}", logits.float().cpu().numpy())
        return logits.float()


@torch.inference_mode()
def evaluate_all(
    models: Sequence[tuple[nn.Module, InputTransform, Frame]],
    images: ImageDataset,
    world: World = ALONE,
) -> list[Accuracy]:
    """Measure several models on the same images, decoded once for all of them.

    The networks are left in evaluation mode.
    """
    for model, _, _ in models:
        model.eval()
    images = images.subset(np.arange(world.rank, len(images), world.size))
    hits = np.zeros((len(models), 3))  # top-1, top-5, not finite
    frames, device = [*dict.fromkeys(frame for _, _, frame in models)], models[0][1].device
    with progress.bar("evaluate", len(images), "images") as advance:
        for numbers, seen in crops.batches(images, frames):
            uploaded = {f: upload(p, device) for f, p in zip(frames, seen, strict=True)}
            for i, (model, feed, frame) in enumerate(models):
                with feed.autocast():
                    logits = model(feed.normalise(uploaded[frame]))
                hit = metrics.top_classes(logits).cpu().numpy() == images.label_N[numbers, None]
                broken = float(not logits.isfinite().all())
                hits[i] += hit[:, 0].sum(), hit.any(axis=1).sum(), broken
            advance(len(seen[0]))
    *sums, count = world.sum([*hits.ravel().tolist(), len(images)])
    each = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
    return [Accuracy(100 * one / count, 100 * five / count, not bad) for one, five, bad in each]


@torch.inference_mode()
def evaluate_networks(
    networks: Sequence[Network],
    images: ImageDataset,
    allowed: Sequence[frozenset[int]] | None = None,
    teacher: Network | None = None,
    on_prediction: OnPrediction | None = None,
) -> dict[str, Scores]:
    """Measure networks on the same images, decoded once for all of them.

    Args:
        networks: Students to measure.
        images: Labelled images.
        allowed: [N] ReaL labels of the images, or None.
        teacher: Reference network for agreement and KL; measured, too.
        on_prediction: Called with the labels and predictions of every batch.

    Returns:
        Scores by the networks' names, the teacher's last.
    """
    measured = [*networks, *([teacher] if teacher else [])]
    tallies = [Tally() for _ in measured]
    frames = [*dict.fromkeys(network.frame for network in measured)]
    with progress.bar(f"evaluate on {images.source}", len(images), "images") as advance:
        for numbers, pixels in crops.batches(images, frames):
            cropped = dict(zip(frames, pixels, strict=True))
            predicted = [network.logits(cropped[network.frame]) for network in measured]
            label_B = torch.from_numpy(images.label_N[numbers].astype(np.int64))
            for tally, logits in zip(tallies, predicted, strict=True):
                tally.add(logits, label_B)
                if allowed is not None:
                    tally.add_real(logits, allowed[numbers])
            if on_prediction is not None:
                for network, logits in zip(measured, predicted, strict=True):
                    on_prediction(images.source, network.name, label_B, logits.argmax(1))
            if teacher is not None:
                for tally, logits in zip(tallies[:-1], predicted, strict=False):
                    agreed = logits.argmax(1) == predicted[-1].argmax(1)
                    tally.compare(agreed, metrics.kl_divergence(predicted[-1], logits))
            advance(len(label_B))
    scores = [tally.scores() for tally in tallies]
    return {network.name: score for network, score in zip(measured, scores, strict=True)}
