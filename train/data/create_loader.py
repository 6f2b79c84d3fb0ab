"""Which loader makes the batches: an automatic choice, and the reason for it in the log.

Both give the same batches bit for bit, so that nothing but the speed depends on the choice.
"""

import importlib.util
import logging
from functools import cache

from cache_tools.data.beton import RAW, Beton
from cache_tools.data.images import Images
from cache_tools.errors import UsageError
from cache_tools.spec.cache import CacheSpec
from cache_tools.targets.mixture import Tail
from train.data.inputs import Inputs
from train.data.native_loader import Replay
from train.data.schedule import Schedule
from train.distributed import World
from train.recipe import TrainRecipe

log = logging.getLogger("kdcache")
_WORTH = 2**16
"""Views of a run from which compiling FFCV's pipeline, some ten seconds, is worth its while."""


def create(
    recipe: TrainRecipe,
    inputs: Inputs,
    schedule: Schedule,
    world: World,
    tail: Tail,
    locked: bool = False,
) -> Replay:
    """The loader of a run.

    Args:
        recipe: What the user asks for.
        inputs: Cache and data set.
        schedule: Which views when.
        world: The processes that train together.
        tail: What a mixture takes classes to be that one of its members did not keep.
        locked: Whether pixels lie in page-locked memory, for a GPU.

    Raises:
        UsageError: The recipe asks for one that cannot be.
    """
    store, images = inputs.store, inputs.images
    kind, why = choose(recipe, images, store.spec, schedule.num_views * recipe.epochs)
    _tell(kind, why)
    arguments = schedule, recipe.threads, world, inputs.members, tail, locked, recipe.epochs
    if kind == "native":
        return Replay(store, images, *arguments)
    assert isinstance(images, Beton)
    from train.data.ffcv_loader import FfcvReplay

    return FfcvReplay(store, images, *arguments)


@cache
def _tell(kind: str, why: str) -> None:
    """Log the choice once in a command, however many students it trains."""
    log.info("the %s loader: %s", kind, why)


def choose(recipe: TrainRecipe, images: Images, spec: CacheSpec, num_views: int) -> tuple[str, str]:
    """The loader's name, "native" or "ffcv", and why.

    Args:
        recipe: What the user asks for.
        images: The data set.
        spec: What the cache is of.
        num_views: Views that the run shows.

    Raises:
        UsageError: The user asks for FFCV and it cannot be; says what it lacks.
    """
    if recipe.loader == "native":
        return "native", "the recipe says so"
    lack = _lack(images, spec)
    if recipe.loader == "ffcv":
        if lack:
            raise UsageError(f"loader=ffcv cannot be: {lack}. Pass loader=native, or mend that.")
        return "ffcv", "the recipe says so"
    if lack:
        return "native", lack
    assert isinstance(images, Beton)
    if num_views < _WORTH:
        return "native", f"{num_views:,} views are over before FFCV's pipeline is compiled"
    if (images.rows_N["mode"] == RAW).all():
        return "ffcv", f"{images.source} holds pixels, which need no decoding"
    return "native", "of JPEG bytes it is as fast as FFCV and compiles nothing"


def _lack(images: Images, spec: CacheSpec) -> str:
    """What FFCV lacks here, or "" when it can be used."""
    if not isinstance(images, Beton):
        return "the data set is no .beton (kdcache beton SRC FILE writes one)"
    if spec.views.interpolation not in ("area", "box"):
        return f"Pillow resizes with interpolation={spec.views.interpolation}, FFCV calls no Python"
    if spec.imported and spec.views.mixes:
        return "its views were imported with partners of their own"
    if importlib.util.find_spec("ffcv") is None:
        return "ffcv is not installed (make ffcv)"
    return _broken()


def _broken() -> str:
    """Why ffcv cannot be imported, or ""."""
    try:
        from train.data import ffcv_loader  # noqa: F401 - compiles, so it comes last
    except (ImportError, OSError, AttributeError) as error:
        return f"ffcv cannot be imported ({error}; make ffcv builds it)"
    return ""
