"""What is damaged: caches, runs, sweeps, the data folder, betons and shards."""

from benchmarks.faults.damages import Reader, Subject
from benchmarks.faults.lab import Lab


def subjects(lab: Lab, url: str) -> list[Subject]:
    """List everything that is damaged, with the commands that read it and those that mend it.

    `url` serves the folder of the laboratory.
    """
    here = lab.folder
    shards, cache, recipe = str(here / "shards"), str(here / "c.zarr"), str(here / "recipe.toml")
    made = ("cache", recipe, "--data", shards, "--device=cpu", "--teacher", str(here / "teacher1"))
    again = ("shard", str(here / "pictures"), "shards", "--shard-size", "16", "--beton")
    sheet = ("views", "c.zarr", "--data", shards, "--out", "v.png", "--samples", "2")

    def train(cache: str, data: str, out: str = "run", *more: str) -> Reader:
        words = (
            "train",
            str(here / "student.toml"),
            "--cache",
            cache,
            "--data",
            data,
            "--out",
            out,
        )
        return Reader((*words, *more), (f"{out}/",))

    def short(cache: str, data: str) -> Reader:
        return train(cache, data, "short", "epochs=1", "views_per_epoch=1", "checkpoint_minutes=9")

    def sweep(out: str) -> Reader:
        words = ("sweep", str(here / "grid.toml"), "--cache", cache, "--data", shards)
        return Reader((*words, "--out", out), (f"{out}/",))

    verify = Reader(("verify", "c.zarr", "--json"))
    of_cache = (
        *[verify] * 3,
        Reader(("status", "c.zarr", "--json")),
        Reader(("info", "c.zarr", "--json")),
        *[Reader(("diff", "c.zarr", str(here / "d.zarr"), "--json"))] * 2,
        *[Reader(("select", "c.zarr", "s.zarr", "--views", "1:3", "--json"), ("s.zarr",))] * 2,
        Reader(("merge", "all.zarr", "c.zarr", str(here / "first.zarr")), ("all.zarr",)),
        Reader(("ensemble", "c.zarr", str(here / "d.zarr"), "--out", "e.zarr"), ("e.zarr",)),
        *[Reader(("convert", "c.zarr", "out", "--to", "webdataset", "--json"), ("out",))] * 2,
        Reader(("convert", "c.zarr", "out", "--to", "parquet", "--json"), ("out",)),
        Reader(("pull", "c.zarr", "here.zarr", "--json"), ("here.zarr",)),
        Reader(sheet, ("v.png",), shows_what_is_there=True),
        short("c.zarr", shards),
    )
    finished, fresh = train(cache, shards), train(cache, shards, "run", "--fresh")
    of_run = (
        *[Reader(("eval", "run", "--views", "16", "--json"))] * 2,
        *[Reader(("export", "run", "--out", "student", "--license", "mit"), ("student",))] * 3,
        Reader(("report", "run", "--no-images", "--out", "r.html", "--views", "0"), ("r.html",)),
        *[finished] * 2,
    )
    remote = Reader(("verify", f"{url}/c.zarr", "--data", f"{url}/shards", "--json"))
    plain, packed = str(here / "plain"), str(here / "packed")
    report = Reader(("report", "sweep", "--out", "r.html"), ("r.html",))
    beton = ("beton", str(here / "pictures"), "betons/train.beton", "--fresh")

    def of_images(data: str) -> Reader:
        return Reader(("verify", cache, "--data", data, "--json"))

    return [
        Subject(
            "cache", (here / "c.zarr",), of_cache, (Reader((*made, "--out", "c.zarr")),), weight=8
        ),
        Subject(
            "pulled cache",
            (here / "c.zarr",),
            (verify,),
            (Reader(("pull", f"{url}/c.zarr", "c.zarr")),),
            weight=3,
        ),
        Subject(
            "repaired cache",
            (here / "c.zarr",),
            (verify,),
            (Reader(("verify", "c.zarr", "--repair", "--from", f"{url}/c.zarr")),),
        ),
        Subject("run", (here / "run",), of_run, (finished, fresh), weight=3),
        Subject("begun run", (here / "begun/run",), (finished,), (fresh,), begun=True, weight=0.5),
        Subject(
            "sweep",
            (here / "sweep",),
            (report, *[sweep("sweep")] * 6),
            (Reader((*sweep("sweep").arguments, "--fresh")),),
            weight=0.5,
        ),
        Subject(
            "data folder",
            (here / "kept",),
            (*[remote, of_images(plain), of_images(packed)] * 3, short(f"{url}/c.zarr", plain)),
            heals=True,
            weight=2.5,
        ),
        Subject(
            "betons",
            (here / "betons",),
            (*[of_images("betons/train.beton")] * 3, short(cache, "betons/train.beton")),
            (Reader(beton),),
        ),
        Subject(
            "shards",
            (here / "shards",),
            (
                *[of_images("shards")] * 4,
                short(cache, "shards"),
                Reader(("shard", "shards", "copy"), ("copy",)),
                Reader(("eval", str(here / "run"), "--data", "shards", "--views", "0", "--json")),
            ),
            (Reader(again),),
            weight=2,
        ),
    ]
