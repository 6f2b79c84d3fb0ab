"""Tars that state what cannot be, and pictures that unfold without measure."""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults import bombs
from benchmarks.faults.bombs import END, member, number, pax
from benchmarks.faults.hostile import Case
from benchmarks.faults.inputs.ingredients import ESCAPES, Ingredients, copied, written


def tars(given: Ingredients) -> Iterator[Case]:
    good = member("a.jpg", given.picture) + member("a.cls", b"3")
    picture = member("a.jpg", given.picture)
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
        "random bytes": given.random.randbytes(100_000),
        "a key twice": good + good + END,
        "checksum of a header": good[:148] + b"0000000\0" + good[156:] + END,
        "no picture": member("a.cls", b"3") + END,
        "key with escape codes": member(f"{ESCAPES}.jpg", b"no picture") + END,
        "name that is no UTF-8": member("a\udcff.jpg", given.picture) + END,
        "60,000 members of nothing": member("x.txt", b"") * 60_000 + END,
        "label of 1.2 GB": lambda: picture + member("a.cls", b"", size=b"%o" % big),
    }
    for name, data in found.items():
        write = written("d/s.tar", data)
        if name == "label of 1.2 GB":
            write = _sparse(data, big)
        yield Case(f"tar: {name}", write, given.cache("d"), "s.tar|d has|d: |d is|in d")
    for name, lengthy in {
        "gzip of 400 MB of zeros": lambda: bombs.gz(400 * 2**20),
        "gzip that is cut": lambda: bombs.gz(2**20)[:300],
        "gzip of random bytes": lambda: b"\x1f\x8b\x08" + given.random.randbytes(5000),
    }.items():
        yield Case(f"tar: {name}", written("d/s.tar.gz", lengthy), given.cache("d"), "s.tar")


def _sparse(data: object, size: int) -> Callable[[Path], object]:
    def write(work: Path) -> None:
        written("d/s.tar", data)(work)
        with (work / "d/s.tar").open("r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) + size + 1024)

    return write


def pictures(given: Ingredients) -> Iterator[Case]:
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
        "p.jpg, cut": given.picture[: len(given.picture) // 2],
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
        write = copied(given.folder / "pictures", written(place, data))
        legal = name in ("p.png, data that expand to 800 MB", "p.ppm, text")
        yield Case(f"picture: {name}", write, given.cache("pictures"), "n00/p|'p'", legal)
