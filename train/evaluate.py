"""Accuracy on a validation set: centre crop as timm's, resized like the views.

The crop is cut from the original picture and resized once by INTER_AREA, so that training and
evaluation see pictures of the same make.

Shapes: B pictures, S pixels a side.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cache_tools import decode, progress, render, threads, views
from cache_tools.shards import Images
from train.input import Input
from train.world import ALONE, World

BATCH = 64


@dataclass(frozen=True)
class Accuracy:
    """Shares of correct answers, in percent."""

    top1: float
    top5: float


@torch.inference_mode()
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
    model.eval()
    images = images.subset(np.arange(world.rank, len(images), world.size))
    top1 = top5 = 0
    with progress.bar("evaluate", len(images), "images") as advance:
        for begin, pixels in _batches(images, size, crop):
            with feed.autocast():
                logits = model(feed.normalise(feed.upload(pixels)))
            ranked = logits.float().topk(min(5, logits.shape[1]), dim=1).indices.cpu().numpy()
            hit = ranked == images.label_N[begin : begin + len(pixels), None]
            top1 += int(hit[:, 0].sum())
            top5 += int(hit.any(axis=1).sum())
            advance(len(pixels))
    hits1, hits5, count = world.sum([top1, top5, len(images)])
    return Accuracy(100.0 * hits1 / count, 100.0 * hits5 / count)


def _batches(images: Images, size: int, crop: float) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """First number and pixels [B, S, S, 3] of each batch, one batch ahead of the network."""

    def one(number: int) -> NDArray[np.uint8]:
        picture = decode.decode(images.read(number), images.names[number])
        box = views.center(picture.shape[0], picture.shape[1], crop)
        return render.crop_resize(picture, box, size)

    with ThreadPoolExecutor(threads.available()) as pool:
        begins = range(0, len(images), BATCH)
        numbers = [range(b, min(b + BATCH, len(images))) for b in begins]
        ahead = [pool.submit(one, i) for i in numbers[0]]
        for begin, following in zip(begins, [*numbers[1:], range(0)], strict=True):
            batch, ahead = ahead, [pool.submit(one, i) for i in following]
            yield begin, np.stack([future.result() for future in batch])
