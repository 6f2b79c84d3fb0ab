"""The hostile inputs by families: tars, pictures, JSON, TOML, caches, zips, arrays, pickles."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults import bombs
from benchmarks.faults.bombs import END, GIB, member, number, pax
from benchmarks.faults.hostile import Case, json_value, texts
from benchmarks.faults.lab import Lab

_SYSTEM = b"cos\nsystem\n(S'touch hacked'\ntR."
"""A pickle that runs a command."""
_STORAGE = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQK\0\x8a\x06\0\0\0\0\0\x01\x85K\x01\x85"
    b"\x89ccollections\nOrderedDict\n)RtR."
)
"""A tensor of 2^40 numbers, as torch pickles it."""
_ESCAPES = "\x1b[31mred\x07\x1b]0;title\x07"


def _file(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    """Write one file, and the folders above it."""

    def write(work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(data() if callable(data) else data)

    return write


def _copy(source: Path, then: Callable[[Path], object]) -> Callable[[Path], object]:
    """Copy an honest folder or file, and change it."""

    def write(work: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, work / source.name)
        else:
            shutil.copy(source, work / source.name)
        then(work)

    return write


class Inputs:
    """All cases of a laboratory."""

    def __init__(self, lab: Lab, seed: int) -> None:
        """Prepare what they are made from."""
        self.lab, self._random = lab, random.Random(seed)
        here = lab.folder
        self._stage1 = ("--teacher", str(here / "teacher1"), "--device=cpu", "--out", "o.zarr")
        self._picture = next((here / "pictures/train/n00").glob("*.jpg")).read_bytes()
        self._manifest = (here / "c.zarr/zarr.json").read_bytes()
        self._again = ("train", str(here / "student.toml"), "--data", str(here / "shards"))
        self._train = (*self._again, "epochs=1")

    def all(self) -> list[Case]:
        """List them."""
        families = (
            self._tars, self._pictures, self._json, self._toml, self._caches, self._zips,
            self._arrays, self._pickles, self._paths,
        )  # fmt: skip
        return [case for family in families for case in family()]

    def _cache(self, data: str) -> tuple[str, ...]:
        return ("cache", str(self.lab.folder / "open.toml"), "--data", data, *self._stage1)

    def _tars(self) -> Iterator[Case]:
        good = member("a.jpg", self._picture) + member("a.cls", b"3")
        picture = member("a.jpg", self._picture)
        big = 1200 * 2**20
        found: dict[str, bytes | Callable[[], bytes]] = {
            "negative size": good + member("n.jpg", b"", size=number(-512)) + END,
            "size of 8 GB": good + member("n.jpg", b"", size=b"77777777777") + END,
            "size of 2^80": good + member("n.jpg", b"", size=number(2**80)) + END,
            "size that is no number": good + member("n.jpg", b"", size=b"zzz") + END,
            "digits in a pax header": member("pax", b"1" * 200_000, b"x") + good + END,
            "pax size of 10^15": pax("size", "9" * 15) + good + END,
            "pax size of 10^5 digits": pax("size", "9" * 100_000) + good + END,
            "pax header of 10 GB": member("pax", b"", b"x", size=b"111111111111") + good + END,
            "pax header of 40 MB": pax("comment", "x" * 40_000_000) + good + END,
            "pax path of 5 MB": pax("path", "x" * 5_000_000) + good + END,
            "chain of long names": member("L", b"a\0", b"L") * 20_000 + good + END,
            "chain of pax headers": pax("a", "b") * 20_000 + good + END,
            "label of 2^40": picture + member("a.cls", b"1099511627776") + END,
            "label of 2^24": picture + member("a.cls", b"16777216") + END,
            "label of -7": picture + member("a.cls", b"-7") + END,
            "label in words": picture + member("a.cls", b"cat") + END,
            "label of 100,000 digits": picture + member("a.cls", b"9" * 100_000) + END,
            "label in deep JSON": picture + member("a.json", b"[" * 100_000) + END,
            "label of 1e400 in JSON": picture + member("a.json", b'{"label": 1e400}') + END,
            "label of NaN in JSON": picture + member("a.json", b'{"label": NaN}') + END,
            "JSON that is a list": picture + member("a.json", b"[1]") + END,
            "no end": good,
            "cut in a member": (good * 3)[:-700],
            "symbolic link": good + member("b.jpg", b"", b"2", link="/etc/passwd") + END,
            "hard link": good + member("b.jpg", b"", b"1", link="../a.jpg") + END,
            "device": good + member("b.jpg", b"", b"3") + END,
            "sparse member": good + member("b.jpg", bytes(512), b"S") + END,
            "nothing but zeros": bytes(5_000_000),
            "random bytes": self._random.randbytes(100_000),
            "a key twice": good + good + END,
            "checksum of a header": good[:148] + b"0000000\0" + good[156:] + END,
            "no picture": member("a.cls", b"3") + END,
            "key with escape codes": member(f"{_ESCAPES}.jpg", b"no picture") + END,
            "name that is no UTF-8": member("a\udcff.jpg", self._picture) + END,
            "60,000 members of nothing": member("x.txt", b"") * 60_000 + END,
            "label of 1.2 GB": lambda: picture + member("a.cls", b"", size=b"%o" % big),
        }
        for name, data in found.items():
            write = _file("d/s.tar", data)
            if name == "label of 1.2 GB":
                write = self._sparse(data, big)
            yield Case(f"tar: {name}", write, self._cache("d"), "s.tar|d has|d: |d is|in d")
        for name, lengthy in {
            "gzip of 400 MB of zeros": lambda: bombs.gz(400 * 2**20),
            "gzip that is cut": lambda: bombs.gz(2**20)[:300],
            "gzip of random bytes": lambda: b"\x1f\x8b\x08" + self._random.randbytes(5000),
        }.items():
            yield Case(f"tar: {name}", _file("d/s.tar.gz", lengthy), self._cache("d"), "s.tar")

    def _sparse(self, data: object, size: int) -> Callable[[Path], object]:
        def write(work: Path) -> None:
            _file("d/s.tar", data)(work)
            with (work / "d/s.tar").open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) + size + 1024)

        return write

    def _pictures(self) -> Iterator[Case]:
        line = 30_000 // 8 + 1
        found: dict[str, bytes | Callable[[], bytes]] = {
            "p.png, 30,000 pixels a side in 1 bit":
                lambda: bombs.png(30_000, 30_000, bombs.packed_zeros(line * 30_000), 1),
            "p.png, 2^31 pixels wide": bombs.png(2**31 - 1, 2**31 - 1),
            "p.png, no pixels": bombs.png(0, 0),
            "p.png, data that expand to 800 MB":
                lambda: bombs.png(40, 40, bombs.packed_zeros(800 * 2**20)),
            "p.png, text that expands to 800 MB":
                lambda: bombs.png(40, 40, b"", 8, b"zTXta\0\0" + bombs.packed_zeros(800 * 2**20)),
            "p.png, profile that expands to 800 MB":
                lambda: bombs.png(40, 40, b"", 8, b"iCCPa\0\0" + bombs.packed_zeros(800 * 2**20)),
            "p.png, 200,000 chunks": bombs.png(40, 40, b"", 8, *[b"tEXta\0b"] * 200_000),
            "p.jpg, 65,500 pixels a side": bombs.jpeg(65_500, 65_500),
            "p.jpg, 65,500 pixels, not progressive": bombs.jpeg(65_500, 65_500, progressive=False),
            "p.jpg, 5,000 scans of 5,000 pixels": bombs.jpeg(5_000, 5_000, 5_000),
            "p.jpg, no pixels": bombs.jpeg(0, 0),
            "p.jpg, cut": self._picture[: len(self._picture) // 2],
            "p.jpg, 3 bytes": b"\xff\xd8\xff",
            "p.tif, 2^31 pixels a side": bombs.tiff(2**31, 2**31),
            "p.tif, 60,000 pixels a side": bombs.tiff(60_000, 60_000),
            "p.tif, a directory that names itself": bombs.tiff(40, 40, True),
            "p.bmp, 2^30 pixels wide": bombs.bmp(2**30, 2**30),
            "p.bmp, 30,000 pixels a side": bombs.bmp(30_000, 30_000),
            "p.bmp, negative sides": bombs.bmp(-40, -2**31),
            "p.ppm, 10^6 pixels a side": b"P6\n1000000 1000000\n255\n" + bytes(100),
            "p.ppm, sides of 5,000 digits": b"P6\n" + b"9" * 5000 + b" 4\n255\n" + bytes(100),
            "p.ppm, text": b"P3\n2 2\n255\n" + b"9 " * 5000,
            "p.webp, 16,383 pixels a side": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f"
                + struct.pack("<I", 0x3FFE | 0x3FFE << 14) + bytes(12),
            "p.webp, nothing behind the header": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
            "p.avif, a box of 2^63 bytes": b"\0\0\0\x1cftypavif" + bytes(16) + b"\0\0\0\x01meta"
                + b"\x7f" + b"\xff" * 7,
            "p.png, empty": b"",
            "p.jpg, text": b"<html>no picture</html>",
        }  # fmt: skip
        for name, data in found.items():
            place = f"pictures/train/n00/{name.partition(',')[0]}"
            write = _copy(self.lab.folder / "pictures", _file(place, data))
            legal = name in ("p.png, data that expand to 800 MB", "p.ppm, text")
            yield Case(f"picture: {name}", write, self._cache("pictures"), "n00/p|'p'", legal)

    def _json(self) -> Iterator[Case]:
        here = self.lab.folder
        student = (*self._again, "--cache", str(here / "c.zarr"), "--out", "run")
        for name, text in texts().items():
            for where, source, place, arguments in (
                ("_info.json", here / "plain", "plain/_info.json", self._cache("plain")),
                ("zarr.json", here / "c.zarr", "c.zarr/zarr.json", ("info", "c.zarr")),
                ("array metadata", here / "c.zarr", "c.zarr/samples/id/zarr.json",
                 ("verify", "c.zarr")),
                ("commit record", here / "c.zarr", "c.zarr/commits/v0000/b0000.json",
                 ("verify", "c.zarr")),
                ("class map", here / "logits.npy", "map.json",
                 (*self._cache(str(here / "shards")), "--class-map", "map.json")),
                ("teacher's config.json", here / "teacher1", "teacher1/config.json",
                 (*self._cache(str(here / "shards"))[:4], "--teacher", "teacher1", "--out", "o")),
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
                write = _copy(source, self._unsealed(place, text))
                base = place.rpartition("/")[2]
                legal = where in ("class map", "ReaL labels", "log.jsonl of a run")
                words = f"{base}|{where}|view 0|{place.partition('/')[0]} is"
                yield Case(f"{where}: {name}", write, arguments, words, legal)

    def _unsealed(self, place: str, text: bytes) -> Callable[[Path], object]:
        """Write a file of a run, without the digests that would refuse any other."""

        def write(work: Path) -> None:
            for path in work.rglob("digests.json"):
                path.unlink()
            _file(place, text)(work)

        return write

    def _toml(self) -> Iterator[Case]:
        found: dict[str, bytes | Callable[[], bytes]] = {
            "deep": b"a=" + b"[" * 50_000 + b"]" * 50_000,
            "deep tables": b"[" + b"a." * 20_000 + b"b]\n",
            "integer of 5,000 digits": b"epochs = " + b"9" * 5_000,
            "a base that names itself": b'base = "r.toml"\n',
            "a base outside": b'base = "../../../../etc/passwd"\n',
            "a base of escape codes": f'base = "{_ESCAPES!r}"\n'.encode(),
            "key with escape codes": b'"\\u001b[31mkey" = 1\n',
            "lr of nan": b'student = "test_vit"\nepochs = 1\nlr = nan\n',
            "epochs of 10^18": b'student = "test_vit"\nepochs = 1000000000000000000\n',
            "no UTF-8": bytes(range(128, 256)),
            "60 MB": lambda: b'a = "' + b"x" * 60_000_000 + b'"',
            "a date": b"epochs = 1979-05-27T07:32:00Z\n",
            "a key twice": b"epochs = 1\nepochs = 2\n",
        }
        cache = str(self.lab.folder / "c.zarr")
        for name, data in found.items():
            for arguments in (("train", "r.toml", "--plan", "--cache", cache), ("plan", "r.toml")):
                write = _file("r.toml", data)
                yield Case(f"recipe: {name}, {arguments[0]}", write, arguments, "r.toml|passwd|lr")

    def _caches(self) -> Iterator[Case]:
        here = self.lab.folder
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
            _ESCAPES,
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
                   (*self._train, "--cache", "c.zarr", "--out", "run")]  # fmt: skip
        for place in places:
            for value in self._random.sample(values, 3):
                text = bombs.sealed(self._manifest, place, value)
                write = _copy(here / "c.zarr", _file("c.zarr/zarr.json", text))
                shown = repr(value)[:20]
                arguments = self._random.choice(readers)
                yield Case(
                    f"manifest: {'.'.join(place)} of {shown}, {arguments[0]}", write, arguments,
                    f"c.zarr|{place[-1]}", legal=True,
                )  # fmt: skip
        for name, then in self._strange("c.zarr/samples/key/c/0").items():
            yield Case(
                f"chunk: {name}", _copy(here / "c.zarr", then), ("verify", "c.zarr"), "c.zarr"
            )
        for name, then in self._strange("c.zarr/zarr.json").items():
            yield Case(
                f"zarr.json: {name}", _copy(here / "c.zarr", then), ("info", "c.zarr"), "c.zarr"
            )

    def _strange(self, place: str) -> dict[str, Callable[[Path], object]]:
        """Return what may lie in the place of a file, and is none of ours."""

        def put(make: Callable[[Path], object]) -> Callable[[Path], object]:
            def write(work: Path) -> None:
                (work / place).unlink(missing_ok=True)
                make(work / place)

            return write

        return {
            "a pipe": put(os.mkfifo),
            "a link to /dev/zero": put(lambda path: path.symlink_to("/dev/zero")),
            "a link to itself": put(lambda path: path.symlink_to(path)),
            "a link to nothing": put(lambda path: path.symlink_to("nowhere")),
            "a folder": put(lambda path: path.mkdir()),
            "3 GB of zeros": put(lambda path: path.touch() or os.truncate(path, 3 * GIB)),
        }

    def _zips(self) -> Iterator[Case]:
        files = [
            (str(p.relative_to(self.lab.folder / "c.zarr")), p.read_bytes())
            for p in sorted((self.lab.folder / "c.zarr").rglob("*"))
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
            "names of escape codes": bombs.zipped([(f"{_ESCAPES}{n}", d) for n, d in files]),
            "60,000 entries": lambda: bombs.zipped((f"x/{i}", b"") for i in range(60_000)),
            "no entry": bombs.zipped([]),
            "no directory": bombs.zipped(files)[:2000],
            "an end alone": b"PK\x05\x06" + b"\xff" * 18,
            "random bytes": b"PK\x03\x04" + self._random.randbytes(5000),
        }
        for name, data in found.items():
            for command in ("info", "verify"):
                write = _file("c.zip", data)
                legal = name in (
                    "links",
                    "60,000 entries",
                    "names from the root",
                    "every name twice",
                )
                yield Case(f"zip: {name}, {command}", write, (command, "c.zip"), "c.zip", legal)

    def _arrays(self) -> Iterator[Case]:
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
            yield Case(f"logits: {name}", _file(file, data), arguments, f"{file}|view 0", legal)

    def _pickles(self) -> Iterator[Case]:
        here = self.lab.folder
        found: dict[str, bytes] = {
            "os.system": _SYSTEM,
            "text": b"root:x:0:0:root:/root:/bin/bash\n" * 100,
            "random bytes": b"\x28" + self._random.randbytes(5000),
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
        student = (*self._again, "--cache", str(here / "c.zarr"), "--out", "run")
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
            yield Case(f"weights: {name}", _file("t.pth", data), stage1, "t.pth")
            fkd = ("import", "fkd", "soft", "--data", pictures, "--out", "o.zarr")
            place = "soft/train/n00/train_0_0.tar"
            yield Case(f"import fkd: {name}", _file(place, data), fkd, "train_0_0|soft")
            place = "soft/config.pth.tar"
            ml_dr = ("import", "ml-dr", "soft", "--data", pictures, "--out", "o.zarr")
            yield Case(f"import ml-dr: {name}", _file(place, data), ml_dr, "config.pth.tar|soft")
            for file in ("checkpoint.pt",):
                write = _copy(here / "begun/run", self._unsealed(f"run/{file}", data))
                # the checkpoint before it is taken, and the log says so
                yield Case(f"{file}: {name}", write, student, file, legal=True)
        line = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
        for name, data in {
            "header of 2^62": bombs.safetensors({}, b"", 2**62),
            "no tensor": bombs.safetensors({}),
            "a tensor of 2^42 bytes": bombs.safetensors({"head.weight": line}),
            "deep header": bombs.safetensors(b"[" * 100_000),
        }.items():
            write = _copy(here / "teacher1", _file("teacher1/model.safetensors", data))
            stage1 = ("cache", str(here / "open.toml"), "--data", shards, "--teacher", "teacher1",
                      "--device", "cpu", "--out", "o.zarr")  # fmt: skip
            yield Case(f"teacher's model.safetensors: {name}", write, stage1, "teacher1")
            write = _copy(here / "run", self._unsealed("run/model/model.safetensors", data))
            words = ("eval", "run", "--views", "0")
            yield Case(f"student's model.safetensors: {name}", write, words, "model")
        for name, fields in {
            "2^31 classes": {"num_classes": 2**31}, "2^24 classes": {"num_classes": 2**24},
            "-1 classes": {"num_classes": -1}, "architecture 5": {"architecture": 5},
            "architecture of escape codes": {"architecture": _ESCAPES},
            "architecture of a path": {"architecture": "../../etc/passwd"},
        }.items():  # fmt: skip
            text = json_value({"architecture": "test_resnet", "num_classes": 10} | fields)
            write = _copy(here / "teacher1", _file("teacher1/config.json", text))
            yield Case(f"teacher's config.json: {name}", write, stage1, "teacher1")

    def _paths(self) -> Iterator[Case]:
        here = self.lab.folder
        place = "pictures/train/n00/p.jpg"
        for name, then in self._strange(place).items():
            write = _copy(here / "pictures", then)
            legal = name in ("a folder", "a pipe", "a link to /dev/zero")  # counted in the log
            yield Case(f"picture: {name}", write, self._cache("pictures"), "n00/p|pictures", legal)

        def loop(work: Path) -> None:
            (work / "pictures/train/n00/up").symlink_to(work / "pictures")

        def odd(work: Path) -> None:
            (work / f"pictures/train/n00/{_ESCAPES.replace('/', '')}\n.jpg").write_bytes(b"none")

        legal = True
        for name, then in (("a link to the folder above", loop), ("a name of escape codes", odd)):
            write = _copy(here / "pictures", then)
            yield Case(f"folder: {name}", write, self._cache("pictures"), "n00|pictures|x1b", legal)
        patterns = {
            "nested braces": "{" * 3000 + "a" + "}" * 3000,
            "a million names": "s-{0..999999999}.tar",
            "braces that multiply": "{0..9999}{0..9999}{0..9999}.tar",
            "a path outside": "../../../../etc/passwd",
            "an absolute path": "/etc/passwd",
            "a name of 5,000 characters": "a" * 5000,
            "escape codes": f"{_ESCAPES}.tar",
            "a zero byte": "a\0b.tar",
        }
        for name, pattern in patterns.items():
            for many in (1, 60):
                text = json_value({"splits": {"train": {"filenames": [pattern] * many}}})
                write = _copy(here / "plain", _file("plain/_info.json", text))
                yield Case(f"_info.json: {name}, {many} times", write, self._cache("plain"),
                           "_info.json")  # fmt: skip
            pattern_ = self._cache(pattern.replace("\0", "\\0"))
            yield Case(
                f"pattern: {name}", _file("x", b""), pattern_, f"{pattern[:3]}|x1b|31mred|data set"
            )
        for name, lengths in {
            "-1": [-1],
            "2^62": [2**62],
            "1e308": [1e308],
            "words": ["x"],
        }.items():
            split = {"filenames": ["train-0000.tar"], "shard_lengths": lengths}
            text = json_value({"splits": {"train": split}})
            write = _copy(here / "plain", _file("plain/_info.json", text))
            yield Case(f"_info.json: length of {name}", write, self._cache("plain"), "_info.json")
        for name, text in {
            "2^40 numbers": b"[1099511627776, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
            "negative numbers": b"[-5, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
            "100,000 lines": b"1\n" * 100_000,
        }.items():
            words = (*self._cache(str(here / "shards")), "--class-map", "map.txt")
            named = "map.txt|class-map"
            yield Case(f"class map: {name}", _file("map.txt", text), words, named)
        for name, text in {"keys that are none": b"x\n" * 1000, "no UTF-8": bytes(range(128, 256)),
                           "escape codes": _ESCAPES.encode() * 100}.items():  # fmt: skip
            words = ("select", str(here / "c.zarr"), "s.zarr", "--samples", "keys.txt")
            yield Case(f"list of samples: {name}", _file("keys.txt", text), words, "keys.txt")
