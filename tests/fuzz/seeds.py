"""Hostile files that were found by hand, from which other ones are made: the seeds of a corpus."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.faults import bombs
from benchmarks.faults.bombs import END, member, npy, number, pax, png, safetensors, shaped, zipped

_GOOD = member("a.ppm", b"P6 1 1 255\n123") + member("a.cls", b"3")


def _info(*names: str, **more: object) -> bytes:
    return json.dumps({"splits": {"train": {"filenames": names, **more}}}).encode()


def _parquet(content: bytes, repeated: int = 1, **options: Any) -> bytes:
    """A column of one picture, the same in all rows."""
    out = io.BytesIO()
    pq.write_table(pa.table({"image": [content] * repeated}), out, **options)
    return out.getvalue()


def _footer(data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return b"PAR1" + data + size.to_bytes(4, "little") + b"PAR1"


SEEDS: dict[str, dict[str, list[bytes]]] = {
    "parquet": {
        "a.parquet": [
            _parquet(bytes(96 * 2**20), compression="zstd", use_dictionary=False),
            _parquet(bytes(50_000), 100_000),
            _parquet(b"", 200_000),
            _footer(b"", 2**32 - 1),
            _footer(b"\x19\xfc" + b"\xff" * 4 + b"\x07" + bytes(9)),
            _footer(b"\x19\xfc\xc0\x84\x3d" + bytes(1_000_001)),
            _footer(b"\x1c" * 50_000),
        ],
    },
    "arrow": {
        "a.arrow": [
            b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"ARROW1\0\0", b"\xff\xff\xff\xff" + bytes(4),
            b"\xff\xff\xff\xff\x40\0\0\0" + bytes(64),
        ],
    },
    "tar": {
        "train-0.tar": [
            _GOOD + member("n.ppm", b"", size=number(-512)) + END,
            _GOOD + member("n.ppm", b"", size=number(2**80)) + END,
            member("pax", b"1" * 20_000, b"x") + _GOOD + END,
            pax("size", "9" * 1_000) + _GOOD + END,
            member("L", b"a\0", b"L") * 200 + _GOOD + END,
            _GOOD + member("b.cls", b"1099511627776") + END,
            _GOOD + member("b.ppm", b"", b"1", link="../a.ppm") + END,
            bytes(5_000),
        ],
    },
    "info_json": {
        "_info.json": [
            b'{"splits":' + b"[" * 5_000,
            b'{"splits":{"train":{"filenames":["a.tar"],"shard_lengths":[Infinity]}}}',
            _info("a" * 5_000),
            _info("{" * 300 + "a" + "}" * 300),
            _info(*["{0..999999}.tar"] * 60),
            _info("train-{0..0}.tar", shard_lengths=[2**70]),
        ],
    },
    "picture": {
        "a.jpg": [bombs.jpeg(65_500, 65_500), bombs.jpeg(500, 500, 600), b"\xff\xd8\xff"],
        "a.png": [png(2**31 - 1, 2**31 - 1), png(40, 40, b"", 8, *[b"tEXta\0b"] * 500)],
        "a.tiff": [bombs.tiff(60_000, 60_000), bombs.tiff(40, 40, True)],
        "a.bmp": [bombs.bmp(2**30, 2**30), bombs.bmp(-40, -(2**31))],
        "a.ppm": [b"P6\n" + b"9" * 5_000 + b" 4\n255\n"],
        "a.avif": [b"\0\0\0\x1cftypavif" + bytes(16) + b"\0\0\0\x01meta\x7f" + b"\xff" * 7],
    },
    "zip_cache": {
        "c.zip": [
            zipped([("zarr.json", b"{}")], size=2**32 - 2, packed=2**32 - 2),
            zipped([("zarr.json", b"{}")] * 3, at=0),
            zipped([("../zarr.json", b"{}")], method=77),
        ],
    },
    "recipe": {
        "train-recipes.toml": [
            b"a=" + b"[" * 5_000, b"[" + b"a." * 2_000 + b"b]\n", b"epochs = " + b"9" * 5_000,
            b'base = "../../../etc/passwd"\n',
        ],
    },
    "text": {
        "map.json": [b"[" * 5_000, b"[[0, 1e400]]"],
        "real.json": [b'{"ILSVRC2012_val_00000001": [-1]}', b"{}"],
    },
    "torch_file": {"old.tar": [b"\x80\x02RRRR.", b"cos\nsystem\n(S'true'\ntR."]},
    "weights": {
        "a.pth": [b"root:x:0:0:root\n" * 9, b"\x80\x02RRRR.", b"PK\x03\x04"],
        "a.safetensors": [
            safetensors(b"", size=2**26),
            safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
        ],
    },
    "logits": {
        "a.npy": [
            npy(shaped("(-5, 10)")), npy(shaped(f"({2**40}, 10)")), npy("{", size=2**31), b"",
        ],
        "b.npz": [zipped([("logits.npy", npy(shaped(f"({2**40}, 10)")))]), b"PK\x03\x04"],
        "d.safetensors": [safetensors(b"", size=2**26), safetensors([])],
    },
    "run": {
        "config.json": [b"[" * 5_000, b'{"recipe": null}', b"{}"],
        "digests.json": [b'{"x": 1}', b'{"sha256": {"log.jsonl": 3}}'],
        "result.json": [b"[]", b'{"top1": 1e400}'],
    },
    "http": {
        "GET": [
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n0123456789",
            b"HTTP/1.1 206 Partial Content\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b",
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        ],
        "PAGE": [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + b"<a href=" * 5_000],
    },
}  # fmt: skip
"""Reader → file → its hostile contents."""
