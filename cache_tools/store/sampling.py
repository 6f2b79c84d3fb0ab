"""A sample of a cache's views, spread over its parts.

Rows of the sample table are in the order of a hash, so neighbours are a random sample of the data
set; the views that are taken of a part are neighbours, which share partners and one read.

Shapes: B views.
"""

from collections.abc import Sequence

import numpy as np

from cache_tools.numerics.array_types import I8
from cache_tools.spec.cache import CacheSpec
from cache_tools.store.commits import Part

PARTS = 64
"""Parts that are sampled, unless more are needed."""


def spread(num_views: int, num_samples: int, count: int) -> tuple[I8, I8]:
    """Select `count` views, or all: view numbers and rows [B], the rows spread evenly."""
    number = np.arange(min(count, num_views * num_samples))
    return number % num_views, number * num_samples // len(number)


def sample_views(spec: CacheSpec, parts: Sequence[Part], count: int) -> list[tuple[Part, I8]]:
    """Select `count` views, or all: of `parts` some far apart, and neighbouring rows of each."""
    share = -(-count // min(PARTS, len(parts)))
    golden = np.arange(len(parts)) * 0.6180339887498949 % 1.0  # its least values are far apart
    chosen: list[tuple[Part, I8]] = []
    for i, number in enumerate(np.argsort(golden, kind="stable").tolist()):
        block = spec.rows(parts[number].block)
        here = min(share, len(block), count)
        begin = block.start + int((len(block) - here) * golden[i])
        chosen.append((parts[number], np.arange(begin, begin + here)))
        count -= here
        if count == 0:
            break
    return chosen
