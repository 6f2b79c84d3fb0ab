"""Files of logits and of weights: sizes that are not there, and pickles that run commands."""

import struct
from collections.abc import Callable, Iterator

from benchmarks.faults import bombs
from benchmarks.faults.bombs import GIB
from benchmarks.faults.hostile import Case, json_value
from benchmarks.faults.inputs.ingredients import ESCAPES, Ingredients, copied, unsealed, written

_SYSTEM = b"cos\nsystem\n(S'touch hacked'\ntR."
"""A pickle that runs a command."""
_STORAGE = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQK\0\x8a\x06\0\0\0\0\0\x01\x85K\x01\x85"
    b"\x89ccollections\nOrderedDict\n)RtR."
)
"""A tensor of 2^40 numbers, as torch pickles it."""


def logits(given: Ingredients) -> Iterator[Case]:
    line = {"dtype": "F32", "shape": [30, 10], "data_offsets": [0, 1200]}

    def npz() -> bytes:
        head = bombs.npy(bombs.shaped("(31457280, 10)"))
        data, _ = bombs.zeros(1200 * 2**20)
        size = len(head) + 1200 * 2**20  # its checksum is another: all of it is read for that
        stored = struct.pack("<BHH", 0, len(head), len(head) ^ 0xFFFF) + head
        return bombs.zipped([("logits.npy", stored + data)], method=8, size=size)

    found: dict[str, bytes | Callable[[], bytes]] = {
        "x.npy, negative shape": bombs.npy(bombs.shaped("(-5, 10)"), b"1234"),
        "x.npy, 2^40 rows": bombs.npy(bombs.shaped("(1099511627776, 10)"), b"1234"),
        "x.npy, 2^70 rows": bombs.npy(bombs.shaped(f"({2**70}, 10)"), b"1234"),
        "x.npy, pickled objects": bombs.npy(bombs.shaped("(30, 10)", "|O"), b"cos\nsystem\n."),
        "x.npy, header of 4 GB": bombs.npy(bombs.shaped("(30, 10)"), b"", 2**32 - 1),
        "x.npy, deep header": bombs.npy("(" * 100_000),
        "x.npy, header of code": bombs.npy("__import__('os').system('touch hacked')"),
        "x.npy, empty": b"",
        "x.npy, one class": bombs.npy(bombs.shaped("(30, 1)"), bytes(120)),
        "x.npy, three axes": bombs.npy(bombs.shaped("(3, 10, 10)"), bytes(1200)),
        "x.npy, NaN": bombs.npy(bombs.shaped("(30, 10)"), b"\xff" * 1200),
        "x.npy, 2^24 classes": bombs.npy(bombs.shaped("(1, 16777216)"), bytes(64)),
        "x.npz, 1.2 GB of zeros": npz,
        "x.npz, nothing": bombs.zipped([]),
        "x.npz, two arrays": bombs.zipped([("a.npy", bombs.npy(bombs.shaped("(1, 1)")))] * 2),
        "x.npz, cut": bombs.zipped([("logits.npy", bytes(5000))])[:3000],
        "x.safetensors, header of 2^62": bombs.safetensors({}, b"", 2**62),
        "x.safetensors, header of 100 MB": bombs.safetensors({}, b"", 100_000_000),
        "x.safetensors, deep header": bombs.safetensors(b"[" * 100_000),
        "x.safetensors, offsets outside":
            bombs.safetensors({"a": {**line, "data_offsets": [0, 2**60]}}, bytes(1200)),
        "x.safetensors, negative offsets":
            bombs.safetensors({"a": {**line, "data_offsets": [-1200, 0]}}, bytes(1200)),
        "x.safetensors, unknown type":
            bombs.safetensors({"a": {**line, "dtype": "X99"}}, bytes(1200)),
        "x.safetensors, nothing": bombs.safetensors({}),
    }  # fmt: skip
    for name, data in found.items():
        file = name.partition(",")[0]
        arguments = ("import", "dense", file, "--out", "o.zarr")
        legal = name == "x.npy, three axes"  # the first counts views
        yield Case(f"logits: {name}", written(file, data), arguments, f"{file}|view 0", legal)


def pickles(given: Ingredients) -> Iterator[Case]:
    here = given.folder
    found: dict[str, bytes] = {
        "os.system": _SYSTEM,
        "text": b"root:x:0:0:root:/root:/bin/bash\n" * 100,
        "random bytes": b"\x28" + given.random.randbytes(5000),
        "a string of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        "bytes of 3 GB": b"\x80\x03B" + struct.pack("<I", 3 * GIB) + b"x.",
        "a number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a memo at 2^31": b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
        "tuples that double 30 times": b"\x80\x02)" + b"2\x86" * 30 + b".",
        "stack that ends": b"\x80\x02RRRR.",
        "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "no end": b"\x80\x02(((((",
        "a zip of it": bombs.zipped([("archive/data.pkl", _SYSTEM)]),
        "a zip without it": bombs.zipped([("archive/other", b"x")]),
        "storage of 2^40": bombs.zipped(
            [("archive/data.pkl", _STORAGE), ("archive/data/0", b"1234"),
             ("archive/version", b"3\n")]
        ),
    }  # fmt: skip
    shards, pictures = str(here / "shards"), str(here / "pictures")
    teacher = ("--architecture", "test_resnet", "--device", "cpu", "--out", "o.zarr")
    student = (*given.again, "--cache", str(here / "c.zarr"), "--out", "run")
    for name, data in found.items():
        stage1 = (
            "cache",
            str(here / "open.toml"),
            "--data",
            shards,
            "--teacher",
            "t.pth",
            *teacher,
        )
        yield Case(f"weights: {name}", written("t.pth", data), stage1, "t.pth")
        fkd = ("import", "fkd", "soft", "--data", pictures, "--out", "o.zarr")
        place = "soft/train/n00/train_0_0.tar"
        yield Case(f"import fkd: {name}", written(place, data), fkd, "train_0_0|soft")
        place = "soft/config.pth.tar"
        ml_dr = ("import", "ml-dr", "soft", "--data", pictures, "--out", "o.zarr")
        yield Case(f"import ml-dr: {name}", written(place, data), ml_dr, "config.pth.tar|soft")
        for file in ("checkpoint.pt",):
            write = copied(here / "begun/run", unsealed(f"run/{file}", data))
            # the checkpoint before it is taken, and the log says so
            yield Case(f"{file}: {name}", write, student, file, legal=True)
    line = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    for name, data in {
        "header of 2^62": bombs.safetensors({}, b"", 2**62),
        "no tensor": bombs.safetensors({}),
        "a tensor of 2^42 bytes": bombs.safetensors({"head.weight": line}),
        "deep header": bombs.safetensors(b"[" * 100_000),
    }.items():
        write = copied(here / "teacher1", written("teacher1/model.safetensors", data))
        stage1 = ("cache", str(here / "open.toml"), "--data", shards, "--teacher", "teacher1",
                  "--device", "cpu", "--out", "o.zarr")  # fmt: skip
        yield Case(f"teacher's model.safetensors: {name}", write, stage1, "teacher1")
        write = copied(here / "run", unsealed("run/model/model.safetensors", data))
        words = ("eval", "run", "--views", "0")
        yield Case(f"student's model.safetensors: {name}", write, words, "model")
    for name, fields in {
        "2^31 classes": {"num_classes": 2**31}, "2^24 classes": {"num_classes": 2**24},
        "-1 classes": {"num_classes": -1}, "architecture 5": {"architecture": 5},
        "architecture of escape codes": {"architecture": ESCAPES},
        "architecture of a path": {"architecture": "../../etc/passwd"},
    }.items():  # fmt: skip
        text = json_value({"architecture": "test_resnet", "num_classes": 10} | fields)
        write = copied(here / "teacher1", written("teacher1/config.json", text))
        yield Case(f"teacher's config.json: {name}", write, stage1, "teacher1")
