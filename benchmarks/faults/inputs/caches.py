"""Caches of absurd numbers and strange files, and zips of caches."""

from collections.abc import Callable, Iterator

from benchmarks.faults import bombs
from benchmarks.faults.hostile import Case
from benchmarks.faults.inputs.ingredients import ESCAPES, Ingredients, copied, strange, written


def folders(given: Ingredients) -> Iterator[Case]:
    here = given.folder
    values = [
        2**24,
        2**31 - 1,
        2**62,
        10**30,
        -1,
        0,
        1e308,
        None,
        [],
        ESCAPES,
        "x" * 5_000_000,
    ]
    fields = {
        "dataset": ("num_samples", "num_classes", "table_sha256", "key"),
        "targets": ("k_max", "k_min", "levels", "tau", "temperatures"),
        "teacher": ("name", "num_classes", "mean", "input_size"),
        "views": ("size", "mixup", "scale", "auto_augment", "re_count", "center_crop", "fill"),
    }
    places = [("spec", a, b) for a, names in fields.items() for b in names]
    places += [("num_views",), ("format_version",), ("spec", "block_size"), ("spec", "window")]
    readers = [("info", "c.zarr"), ("verify", "c.zarr"),
               (*given.train, "--cache", "c.zarr", "--out", "run")]  # fmt: skip
    for place in places:
        for value in given.random.sample(values, 3):
            text = bombs.sealed(given.manifest, place, value)
            write = copied(here / "c.zarr", written("c.zarr/zarr.json", text))
            shown = repr(value)[:20]
            arguments = given.random.choice(readers)
            yield Case(
                f"manifest: {'.'.join(place)} of {shown}, {arguments[0]}", write, arguments,
                f"c.zarr|{place[-1]}", legal=True,
            )  # fmt: skip
    for name, then in strange("c.zarr/samples/key/c/0").items():
        yield Case(f"chunk: {name}", copied(here / "c.zarr", then), ("verify", "c.zarr"), "c.zarr")
    for name, then in strange("c.zarr/zarr.json").items():
        yield Case(
            f"zarr.json: {name}", copied(here / "c.zarr", then), ("info", "c.zarr"), "c.zarr"
        )


def zips(given: Ingredients) -> Iterator[Case]:
    files = [
        (str(p.relative_to(given.folder / "c.zarr")), p.read_bytes())
        for p in sorted((given.folder / "c.zarr").rglob("*"))
        if p.is_file()
    ]
    small = files[:5]

    def bomb() -> bytes:
        data, crc = bombs.zeros(1200 * 2**20)
        return bombs.zipped([("zarr.json", data)], method=8, size=1200 * 2**20, crc=crc)

    found: dict[str, bytes | Callable[[], bytes]] = {
        "zarr.json of 1.2 GB": bomb,
        "sizes of 4 GB": bombs.zipped(small, size=2**32 - 2, packed=2**32 - 2),
        "sizes of 0": bombs.zipped(files, size=0, packed=0),
        "headers outside": bombs.zipped(files, at=2**31),
        "all headers at one place": bombs.zipped(files, at=0),
        "unknown compression": bombs.zipped(files, method=77),
        "bzip2 of what is none": bombs.zipped(files, method=12),
        "lzma of what is none": bombs.zipped(files, method=14),
        "deflate of what is none": bombs.zipped(files, method=8),
        "encrypted": bombs.zipped(files, flags=1),
        "links": bombs.zipped(files, mode=0o120777),
        "wrong checksums": bombs.zipped(files, crc=7),
        "names outside": bombs.zipped([(f"../../{n}", d) for n, d in files]),
        "names from the root": bombs.zipped([(f"/{n}", d) for n, d in files]),
        "every name twice": bombs.zipped([*files, *files]),
        "names of escape codes": bombs.zipped([(f"{ESCAPES}{n}", d) for n, d in files]),
        "60,000 entries": lambda: bombs.zipped((f"x/{i}", b"") for i in range(60_000)),
        "no entry": bombs.zipped([]),
        "no directory": bombs.zipped(files)[:2000],
        "an end alone": b"PK\x05\x06" + b"\xff" * 18,
        "random bytes": b"PK\x03\x04" + given.random.randbytes(5000),
    }
    for name, data in found.items():
        for command in ("info", "verify"):
            write = written("c.zip", data)
            legal = name in (
                "links",
                "60,000 entries",
                "names from the root",
                "every name twice",
            )
            yield Case(f"zip: {name}, {command}", write, (command, "c.zip"), "c.zip", legal)
