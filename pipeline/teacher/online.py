"""Teacher in the training loop: online distillation on the views of a cache.

Offered to `kdcache train … mode=online` by the entry point `online` of `kdcache.teachers`: the
teacher gets the student's batches as in stage 1, and its targets are made sparse by the cache's
recipe, but not rounded to codes. It costs a teacher's forward pass per view and run; it is there to
prove that cached is equal.

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

TeacherFn = Callable[
    [NDArray[np.uint8], NDArray[np.uint8] | None, MixParams, NDArray[np.int64]], tuple[Tensor, ...]
]


def online(store: Cache, teacher: str | Sequence[str], device: torch.device) -> TeacherFn:
    """Load the teacher of a cache as a function of batches.

    `teacher` has names, folders or files of the networks; none takes the names in the cache.

    Raises:
        UsageError: The teacher has views of its own size, which the student's loader does not
            render; or a class map, which this mode does not support.
        CacheMismatch: The weights differ from those of the cache's teacher.
    """
    spec = store.spec
    if spec.views.teacher_size not in (0, spec.views.size):
        raise UsageError(
            f"this cache's teacher has views of {spec.views.teacher_size} px, the student's have "
            f"{spec.views.size}: mode=online does not render both. Train with mode=kd."
        )
    of = [member.class_map_sha256 for member in spec.teacher.members]
    if any([spec.teacher.class_map_sha256, *of]):
        raise UsageError(
            "this cache's teacher has a class map, which mode=online does not support. "
            "Train with mode=kd."
        )
    names = [teacher] if isinstance(teacher, str) else list(teacher)
    loaded = reload.load(spec.teacher, spec.views.size, [name for name in names if name])
    return Forward(loaded, spec.targets, device)
