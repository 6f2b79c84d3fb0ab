"""Hostile JSON in every place where a command reads it, and recipes."""

from collections.abc import Callable, Iterator

from benchmarks.faults.hostile import Case, texts
from benchmarks.faults.inputs.ingredients import ESCAPES, Ingredients, copied, unsealed, written


def json_files(given: Ingredients) -> Iterator[Case]:
    here = given.folder
    student = (*given.again, "--cache", str(here / "c.zarr"), "--out", "run")
    for name, text in texts().items():
        for where, source, place, arguments in (
            ("_info.json", here / "plain", "plain/_info.json", given.cache("plain")),
            ("zarr.json", here / "c.zarr", "c.zarr/zarr.json", ("info", "c.zarr")),
            ("array metadata", here / "c.zarr", "c.zarr/samples/id/zarr.json",
             ("verify", "c.zarr")),
            ("commit record", here / "c.zarr", "c.zarr/commits/v0000/b0000.json",
             ("verify", "c.zarr")),
            ("class map", here / "logits.npy", "map.json",
             (*given.cache(str(here / "shards")), "--class-map", "map.json")),
            ("teacher's config.json", here / "teacher1", "teacher1/config.json",
             (*given.cache(str(here / "shards"))[:4], "--teacher", "teacher1", "--out", "o")),
            ("config.json of a run", here / "run", "run/config.json",
             ("eval", "run", "--views", "0")),
            ("result.json of a run", here / "run", "run/result.json", student),
            ("digests.json of a run", here / "run", "run/digests.json",
             ("export", "run", "--out", "e")),
            ("log.jsonl of a run", here / "run", "run/log.jsonl",
             ("report", "run", "--no-images", "--views", "0", "--out", "r.html")),
            ("ReaL labels", here / "run", "real.json",
             ("eval", "run", "--views", "0", "--real", "real.json")),
            ("sweep.json", here / "sweep", "sweep/sweep.json",
             ("report", "sweep", "--out", "r.html")),
        ):  # fmt: skip
            write = copied(source, unsealed(place, text))
            base = place.rpartition("/")[2]
            legal = where in ("class map", "ReaL labels", "log.jsonl of a run")
            words = f"{base}|{where}|view 0|{place.partition('/')[0]} is"
            yield Case(f"{where}: {name}", write, arguments, words, legal)


def recipes(given: Ingredients) -> Iterator[Case]:
    found: dict[str, bytes | Callable[[], bytes]] = {
        "deep": b"a=" + b"[" * 50_000 + b"]" * 50_000,
        "deep tables": b"[" + b"a." * 20_000 + b"b]\n",
        "integer of 5,000 digits": b"epochs = " + b"9" * 5_000,
        "a base that names itself": b'base = "r.toml"\n',
        "a base outside": b'base = "../../../../etc/passwd"\n',
        "a base of escape codes": f'base = "{ESCAPES!r}"\n'.encode(),
        "key with escape codes": b'"\\u001b[31mkey" = 1\n',
        "lr of nan": b'student = "test_vit"\nepochs = 1\nlr = nan\n',
        "epochs of 10^18": b'student = "test_vit"\nepochs = 1000000000000000000\n',
        "no UTF-8": bytes(range(128, 256)),
        "60 MB": lambda: b'a = "' + b"x" * 60_000_000 + b'"',
        "a date": b"epochs = 1979-05-27T07:32:00Z\n",
        "a key twice": b"epochs = 1\nepochs = 2\n",
    }
    cache = str(given.folder / "c.zarr")
    for name, data in found.items():
        for arguments in (("train", "r.toml", "--plan", "--cache", cache), ("plan", "r.toml")):
            write = written("r.toml", data)
            yield Case(f"recipe: {name}, {arguments[0]}", write, arguments, "r.toml|passwd|lr")
