"""One cache by one call: what `kdcache cache` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_tools.runtime import arguments
from cache_tools.runtime.progress import shown
from pipeline import recipe as recipes
from pipeline.engines import launch
from pipeline.recipe import CacheRecipe, TeacherSource
from pipeline.run import CacheResult, PartSelection, run


def make_cache(
    recipe: str | Path | Mapping[str, Any] | CacheRecipe,
    *,
    data: str | Path,
    teacher: str | Path | TeacherSource | Sequence[str | TeacherSource] | None = None,
    out: str | Path,
    values: Mapping[str, Any] | None = None,
    device: str | None = None,
    engine: launch.Kind = "local",
    address: str | None = None,
    workers: int | None = None,
    task: int | None = None,
    tasks: int | None = None,
    parts: Sequence[int] = (),
    limit: int | None = None,
    random_weights: bool = False,
    force: bool = False,
    progress: bool = True,
) -> CacheResult:
    """Run a teacher once and store its soft targets; make the missing parts of a cache begun.

        >>> result = kdcache.make_cache(
        ...     "digits", data="digits", teacher="digits/teacher-model", out="cache.zarr",
        ...     values={"num_views": 2}, progress=False,
        ... )
        >>> result.parts_done, result.parts_total, result.views
        (2, 2, 200)

    With several GPUs it starts processes, which import the caller's script: keep the call below
    `if __name__ == "__main__":` there.

    Args:
        recipe: A recipe's name, file, keys, or the recipe itself.
        data: Folder of shards or images, a pattern, or a URL.
        teacher: timm name, folder or file of a teacher, as of `--teacher`, or several, whose
            probabilities are averaged; `TeacherSource` has weight, architecture and class map.
            None: those of the recipe.
        out: Folder or URL of the cache.
        values: Keys of the recipe to override: {"num_views": 4, "views.mixup": 0.5}.
        device: "cuda", "cuda:1", "cpu"; None: every visible GPU, else the CPU.
        engine: "local", or "ray" for the actors of a cluster.
        address: Address of Ray's cluster; None: $RAY_ADDRESS, one that runs here, a new one.
        workers: Processes or actors; None: one for each visible GPU.
        task: Number of this process among `tasks` that share the parts, from 0; None: as torchrun,
            srun, mpirun or a Slurm array has it.
        tasks: Count of those processes.
        parts: Numbers of the parts to make, as in `kdcache status --missing`; empty: all.
        limit: Largest number of parts to make; None: all.
        random_weights: True for an untrained teacher, for speed trials.
        force: True to go on with a teacher that agrees with the labels by chance only.
        progress: True for a progress bar on a terminal.

    Raises:
        UsageError, RecipeError: An argument that cannot be.
        TeacherError: The teacher cannot be loaded.
        CacheMismatch: There is another cache at `out`, or the labels have other classes.
        CacheIncomplete: Parts could not be made, each with its reason; the others are committed.
        DataError: Images that cannot be read, or labels that the teacher agrees with by chance.
        NonFinite: The teacher predicted NaN or Inf.
        KeyboardInterrupt: A signal came; complete parts are committed.
    """
    loaded = recipes.load(recipe, values=values)
    if teacher is None:
        sources = recipes.sources(loaded)
    else:
        one = isinstance(teacher, str | Path | TeacherSource)
        named = [teacher] if one else arguments.listed("teacher", teacher)
        sources = tuple(t if isinstance(t, TeacherSource) else TeacherSource(str(t)) for t in named)
    for name, count, least in (("limit", limit, 1), ("workers", workers, 1)):
        arguments.check_count(name, count, least)
    parts = arguments.listed("parts", parts)
    for part in parts:
        arguments.check_count("parts", part, 0, or_none=False)
    mine = launch.choose(task, tasks, by_number=bool(parts))
    selection = PartSelection(mine.number, mine.count, limit, frozenset(parts))
    opened = launch.engine(mine, device, workers, engine, address)
    with shown(progress and mine.is_main):
        store = run(
            loaded, str(data), sources, str(out), device, random_weights, selection, opened, force
        )
    return CacheResult.of(store)
