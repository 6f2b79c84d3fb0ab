"""Strange paths, patterns of names and lists."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.hostile import Case, json_value
from benchmarks.faults.inputs.ingredients import ESCAPES, Ingredients, copied, strange, written


def strange_paths(given: Ingredients) -> Iterator[Case]:
    here = given.folder
    place = "pictures/train/n00/p.jpg"
    for name, then in strange(place).items():
        write = copied(here / "pictures", then)
        legal = name in ("a folder", "a pipe", "a link to /dev/zero")  # counted in the log
        yield Case(f"picture: {name}", write, given.cache("pictures"), "n00/p|pictures", legal)

    def loop(work: Path) -> None:
        (work / "pictures/train/n00/up").symlink_to(work / "pictures")

    def odd(work: Path) -> None:
        (work / f"pictures/train/n00/{ESCAPES.replace('/', '')}\n.jpg").write_bytes(b"none")

    legal = True
    for name, then in (("a link to the folder above", loop), ("a name of escape codes", odd)):
        write = copied(here / "pictures", then)
        yield Case(f"folder: {name}", write, given.cache("pictures"), "n00|pictures|x1b", legal)
    patterns = {
        "nested braces": "{" * 3000 + "a" + "}" * 3000,
        "a million names": "s-{0..999999999}.tar",
        "braces that multiply": "{0..9999}{0..9999}{0..9999}.tar",
        "a path outside": "../../../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "a name of 5,000 characters": "a" * 5000,
        "escape codes": f"{ESCAPES}.tar",
        "a zero byte": "a\0b.tar",
    }
    for name, pattern in patterns.items():
        for many in (1, 60):
            text = json_value({"splits": {"train": {"filenames": [pattern] * many}}})
            write = copied(here / "plain", written("plain/_info.json", text))
            yield Case(f"_info.json: {name}, {many} times", write, given.cache("plain"),
                       "_info.json")  # fmt: skip
        pattern_ = given.cache(pattern.replace("\0", "\\0"))
        yield Case(
            f"pattern: {name}", written("x", b""), pattern_, f"{pattern[:3]}|x1b|31mred|data set"
        )
    for name, lengths in {
        "-1": [-1],
        "2^62": [2**62],
        "1e308": [1e308],
        "words": ["x"],
    }.items():
        split = {"filenames": ["train-0000.tar"], "shard_lengths": lengths}
        text = json_value({"splits": {"train": split}})
        write = copied(here / "plain", written("plain/_info.json", text))
        yield Case(f"_info.json: length of {name}", write, given.cache("plain"), "_info.json")
    for name, text in {
        "2^40 numbers": b"[1099511627776, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "negative numbers": b"[-5, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "100,000 lines": b"1\n" * 100_000,
    }.items():
        words = (*given.cache(str(here / "shards")), "--class-map", "map.txt")
        named = "map.txt|class-map"
        yield Case(f"class map: {name}", written("map.txt", text), words, named)
    for name, text in {"keys that are none": b"x\n" * 1000, "no UTF-8": bytes(range(128, 256)),
                       "escape codes": ESCAPES.encode() * 100}.items():  # fmt: skip
        words = ("select", str(here / "c.zarr"), "s.zarr", "--samples", "keys.txt")
        yield Case(f"list of samples: {name}", written("keys.txt", text), words, "keys.txt")
