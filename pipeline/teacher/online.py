"""The teacher in the loop: what online distillation does, on the very views of a cache.

Offered to `kdcache train … mode=online` by the entry point `online` of `kdcache.teachers`: the
student's batches are shown to the teacher as stage 1 would show them, and what it says is kept as
the cache's recipe says, but not rounded to codes. It costs a teacher's forward pass per view and
run; it is there to prove that cached is equal.

Shapes: B views, S pixels a side, P labels of a view.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.errors import UsageError
from cache_tools.store.cache import Cache
from cache_tools.views.draw import MixParams
from pipeline.teacher import reload
from pipeline.teacher.forward import Forward

Ask = Callable[
    [NDArray[np.uint8], NDArray[np.uint8] | None, MixParams, NDArray[np.int64]], tuple[Tensor, ...]
]


def online(store: Cache, teacher: str | Sequence[str], device: torch.device) -> Ask:
    """A teacher to ask about batches.

    Args:
        store: The cache whose views, targets and teacher these are.
        teacher: Names, folders or files of the teachers; none takes the names in the cache.
        device: Where it runs.

    Raises:
        UsageError: The teacher sees views at a size of its own, which the student's loader does not
            render; or through a class map, which this mode does not take.
        CacheMismatch: It has other weights than the cache's teacher.
    """
    spec = store.spec
    if spec.views.teacher_size not in (0, spec.views.size):
        raise UsageError(
            f"this cache's teacher sees views of {spec.views.teacher_size} px, the student's have "
            f"{spec.views.size}: mode=online cannot show it those. Train with mode=kd."
        )
    of = [member.class_map_sha256 for member in spec.teacher.members]
    if any([spec.teacher.class_map_sha256, *of]):
        raise UsageError(
            "this cache's teacher speaks through a class map, which mode=online does not take. "
            "Train with mode=kd."
        )
    names = [teacher] if isinstance(teacher, str) else list(teacher)
    asked = reload.load(spec.teacher, spec.views.size, [name for name in names if name])
    return Forward(asked, spec.targets, device)
