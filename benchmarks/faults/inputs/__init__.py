"""The hostile inputs by families: tars, pictures, JSON, TOML, caches, zips, arrays, pickles."""

from benchmarks.faults.hostile import Case
from benchmarks.faults.inputs import arrays, caches, documents, images, paths
from benchmarks.faults.inputs.ingredients import Ingredients
from benchmarks.faults.lab import Lab


def cases(lab: Lab, seed: int) -> list[Case]:
    """List the cases of all families of a laboratory."""
    given = Ingredients(lab, seed)
    families = (
        images.tars, images.pictures, documents.json_files, documents.recipes, caches.folders,
        caches.zips, arrays.logits, arrays.pickles, paths.strange_paths,
    )  # fmt: skip
    return [case for family in families for case in family(given)]
