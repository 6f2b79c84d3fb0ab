"""Choice of the renderer that makes a run's batches, with its reason in the log.

Both give the same batches bit for bit, so that only the speed depends on the choice.
"""

import functools
import importlib.util
import logging
from collections.abc import Sequence

from cache_tools.data.beton.reader import Beton
from cache_tools.data.beton.records import RAW
from cache_tools.data.images import ImageDataset
from cache_tools.errors import UsageError
from cache_tools.spec.cache import CacheSpec
from cache_tools.store.aligned import CacheEnsemble
from cache_tools.store.cache import Cache
from train.data.follow import Follower
from train.data.inputs import Inputs
from train.data.loader import Loader, Renderer
from train.data.native_renderer import NativeRenderer
from train.data.schedule import Schedule
from train.data.stored_targets import StoredTargets
from train.distributed import ALONE, World
from train.recipe import TrainRecipe

log = logging.getLogger("kdcache")
_WORTH = 2**16
"""Views of a run from which compiling FFCV's pipeline, some ten seconds, pays."""


def create(
    recipe: TrainRecipe,
    inputs: Inputs,
    schedule: Schedule,
    world: World = ALONE,
    pin_memory: bool = False,
    follower: Follower | None = None,
    others: Sequence[Schedule] = (),
) -> Loader:
    """Create the loader of a run, or of a cohort of students of several sizes.

    `others` has the same views at the other sizes; the rest is as of `Loader`.

    Raises:
        UsageError: The recipe names a loader that cannot be used.
        CacheMismatch: FFCV's libraries make other pixels.
    """
    cache, images = inputs.store, inputs.images
    kind, reason = choose(recipe, images, cache.spec, schedule.num_views * (schedule.epochs or 1))
    if others and kind == "ffcv":
        kind, reason = "native", "of views at several sizes, which FFCV's pipeline does not make"
        if recipe.loader == "ffcv":
            raise UsageError(
                "loader=ffcv renders views of one size, and these students have several. Pass "
                "loader=native, or train them apart."
            )
    _log_choice(kind, reason)
    renderer: Renderer
    if kind == "ffcv":
        assert isinstance(images, Beton)
        from train.data.ffcv_renderer import FfcvRenderer

        renderer = FfcvRenderer(cache, images, recipe.threads, schedule, world)
    else:
        renderer = NativeRenderer(cache, images, recipe.threads, schedule.views)
    targets = StoredTargets(inputs.members, "zero" if recipe.tail == "zero" else "uniform")
    return Loader(schedule, targets, renderer, world, pin_memory, follower, others)


def native(cache: Cache, images: ImageDataset, schedule: Schedule, num_threads: int = 0) -> Loader:
    """Create the native loader of one cache; 0 threads: one per core."""
    renderer = NativeRenderer(cache, images, num_threads, schedule.views)
    return Loader(schedule, StoredTargets(CacheEnsemble((cache,), (1.0,))), renderer)


def ffcv(cache: Cache, images: Beton, schedule: Schedule, num_threads: int = 0) -> Loader:
    """Create the loader of one cache by FFCV; 0 threads: one per core."""
    from train.data.ffcv_renderer import FfcvRenderer

    renderer = FfcvRenderer(cache, images, num_threads, schedule, ALONE)
    return Loader(schedule, StoredTargets(CacheEnsemble((cache,), (1.0,))), renderer)


@functools.cache
def _log_choice(kind: str, reason: str) -> None:
    """Log the choice once in a command, however many students it trains."""
    log.info("loader=%s: %s", kind, reason)


def choose(
    recipe: TrainRecipe, images: ImageDataset, spec: CacheSpec, num_views: int
) -> tuple[str, str]:
    """Choose "native" or "ffcv", and give the reason.

    Raises:
        UsageError: The recipe names FFCV and it cannot be used; contains the reason.
    """
    if recipe.loader == "native":
        return "native", "set in the recipe"
    lack = _lack(images, spec)
    if recipe.loader == "ffcv":
        if lack:
            raise UsageError(f"loader=ffcv cannot be used: {lack}. Pass loader=native.")
        return "ffcv", "set in the recipe"
    if lack:
        return "native", lack
    assert isinstance(images, Beton)
    if num_views < _WORTH:
        return "native", f"{num_views:,} views are over before FFCV's pipeline is compiled"
    if (images.rows_N["mode"] == RAW).all():
        return "ffcv", f"{images.source} holds pixels, which need no decoding"
    return "native", "of JPEG bytes it is as fast as FFCV and compiles nothing"


def _lack(images: ImageDataset, spec: CacheSpec) -> str:
    """Reason why FFCV cannot be used here, or ""."""
    if not isinstance(images, Beton):
        return "the data set is no .beton (kdcache beton SRC FILE writes one)"
    if spec.views.interpolation not in ("area", "box"):
        return f"Pillow resizes with interpolation={spec.views.interpolation}, FFCV calls no Python"
    if spec.imported and spec.views.mixes:
        return "its views were imported with partners of their own"
    if importlib.util.find_spec("ffcv") is None:
        return "ffcv is not installed (make ffcv)"
    try:
        from train.data import ffcv_renderer  # noqa: F401 - compiles, so it comes last
    except (ImportError, OSError, AttributeError) as error:
        return f"ffcv cannot be imported ({error}; make ffcv builds it)"
    return ""
