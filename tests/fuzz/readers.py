"""The readers of files from outside, each with honest files to start from.

`make` writes them into a folder, `read` reads all of it, `seal` recomputes the checksums after an
edit, so that what is behind them is reached.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from cache_tools.cli import imports
from cache_tools.data import info_json, tar_index
from cache_tools.data.beton import writer
from cache_tools.data.open import open_images
from cache_tools.errors import KdcacheError
from cache_tools.importers import dense, ordering, torch_file
from cache_tools.render import decode
from cache_tools.spec.views import ViewSpec
from cache_tools.storage import disk_cache, fsspec_client
from cache_tools.store import info
from cache_tools.store.cache import Cache
from cache_tools.targets import logits_file
from cache_tools.verify import verify
from pipeline import recipe as cache_recipes
from pipeline.teacher import checkpoint, class_map
from tests.end_to_end.attacks import attacker
from tests.helpers import foreign_files, lab, reports, tables
from train import recipe as recipes
from train import run_dir, run_state
from train.evaluate import real_labels
from train.evaluate.models import EvalOptions
from train.report import run_facts, run_section, sweep_section
from train.sweep import grid

Work = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """A reader of the files in a folder."""

    make: Work
    read: Work
    seal: Work = lambda folder: None
    edited: str = "*"
    """Pattern of the files that are edited, the others are as they should be."""
    examples: int = 2
    """Damaged examples in `make test`."""


def _all_images(folder: Path) -> None:
    images = open_images(str(folder), "train")
    for number in range(len(images)):
        images.read(number)
        images.pixels(number)


def _shard(folder: Path) -> None:
    """A shard of two pictures with classes and a long name, and its description."""
    with tarfile.open(folder / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("a.jpg", _picture("jpeg")), ("a.cls", b"1"), ("b.png", _picture("png")),
            ("b.json", b'{"label": 0}'), ("c" * 120 + ".png", _picture("png")),
            ("c" * 120 + ".cls", b"0"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    split = {"name": "train", "num_samples": 3, "filenames": ["train-{0..0}.tar"]}
    description = {"name": "x", "splits": {"train": {**split, "shard_lengths": [3]}}}
    (folder / info_json.NAME).write_text(json.dumps(description))


def _picture(kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(data, kind)
    return data.getvalue()


def _tar_index(folder: Path) -> None:
    _shard(folder)
    with (folder / "train-0.tar").open("rb") as file:
        data = tar_index.scan(file, "train-0.tar", checksums=True).pack()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "train-0.idx").write_bytes(data)


def _seal_index(folder: Path) -> None:
    path = folder / "train-0.idx"
    body = path.read_bytes()[:-4]
    path.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    image.save(folder / "a.jpg")
    image.save(folder / "progressive.jpg", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    for suffix in ("png", "webp", "gif", "bmp", "tiff", "ppm", "avif"):
        image.save(folder / f"a.{suffix}")
    image.save(folder / "lzw.tiff", compression="tiff_lzw")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.png", transparency=3)


def _decode(folder: Path) -> None:
    for path in folder.iterdir():
        data = path.read_bytes()
        with contextlib.suppress(OSError):
            decode.size(data, path.name)
            decode.decode(data, path.name)


def _rows() -> list[tables.Row]:
    pictures = [_picture("jpeg"), None, _picture("png")]
    return [(data, f"a/{i}.jpg", i - 1) for i, data in enumerate([*pictures, *pictures])]


def _parquet(folder: Path) -> None:
    content = tables.table(_rows(), ["a", "b", "c", "d", "e"])
    pq.write_table(content, folder / "a.parquet", row_group_size=4)


def _arrow(folder: Path) -> None:
    tables.arrow(folder / "a.arrow", tables.table(_rows(), ["a", "b", "c", "d", "e"]))


def _all_rows(folder: Path) -> None:
    """Copies of the files are kept only as long as they are read."""
    kept = os.environ.get(disk_cache.FOLDER, "")
    with tempfile.TemporaryDirectory() as copies:
        os.environ[disk_cache.FOLDER] = copies
        try:
            _all_images(folder)
        finally:
            os.environ[disk_cache.FOLDER] = kept


def _beton(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    _shard(source)
    writer.write(open_images(str(source), "train"), folder / "train.beton", False, 1, _ignore)
    shutil.rmtree(source)


def _ignore(_: int) -> None:
    """Report no progress."""


def _cache(folder: Path) -> None:
    attacker.honest(folder / "c.zarr")


def _read_cache(folder: Path) -> None:
    zipped = folder / "c.zip"
    store = Cache.open(zipped if zipped.is_file() else folder / "c.zarr")
    for work in (
        lambda: store.table,
        lambda: [store.read(part) for _, part in zip(range(8), store.parts(), strict=False)],
        lambda: verify.verify(store),
        lambda: info.info(store),
    ):
        with contextlib.suppress(OSError, LookupError):
            work()


def _seal_cache(folder: Path) -> None:
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        attacker.seal(folder / "c.zarr")


def _seal_chunk(folder: Path) -> None:
    """Checksums of frames, then digests of the sample table and of the records."""
    for path in (folder / "c.zarr").rglob("c/**/*"):
        if path.is_file() and len(data := path.read_bytes()) > 4:
            path.write_bytes(attacker.with_crc(data[:-4]))
    _seal_cache(folder)


def _zip(folder: Path) -> None:
    _cache(folder)
    with zipfile.ZipFile(folder / "c.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted((folder / "c.zarr").rglob("*")):
            out.write(path, path.relative_to(folder))
    shutil.rmtree(folder / "c.zarr")


def _recipes(folder: Path) -> None:
    for package, name in (("train", "recipes"), ("pipeline", "recipes"), ("train", "grids")):
        text = Path(package, name, "digits.toml").read_bytes()
        (folder / f"{package}-{name}.toml").write_bytes(text)


def _read_recipes(folder: Path) -> None:
    for name, read in (
        ("train-recipes", recipes.load),
        ("pipeline-recipes", cache_recipes.load),
        ("train-grids", grid.load),
    ):
        with contextlib.suppress(ValueError):
            read(str(folder / f"{name}.toml"))


def _texts(folder: Path) -> None:
    (folder / "map.json").write_text('[[0, "a"], 3]')
    (folder / "map.txt").write_text("0 1\n2\n")
    (folder / "real.json").write_text('{"ILSVRC2012_val_00000001.JPEG": [1, 2]}')
    (folder / "index.txt").write_text("a/x.jpg\nb/y.jpg\n")


def _read_texts(folder: Path) -> None:
    model: Any = SimpleNamespace(num_classes=5, pretrained_cfg={"label_names": [*"abcde"]})
    for work in (
        lambda: class_map.load(str(folder / "map.json"), model),
        lambda: class_map.load(str(folder / "map.txt"), model),
        lambda: real_labels.load(str(folder / "real.json")),
        lambda: ordering.lines(folder / "index.txt", ["a/x", "b/y"], "data"),
    ):
        with contextlib.suppress(ValueError):
            work()


def _torch_files(folder: Path) -> None:
    value = {"a": [1, 2.5, "x", None, True, b"y"], "b": (np.arange(6.0).reshape(2, 3), {"c": 1})}
    torch.save([np.float64(1), value], folder / "zip.tar")
    torch.save(value, folder / "old.tar", _use_new_zipfile_serialization=False)
    torch.save([torch.arange(6).reshape(2, 3).T, torch.ones(2).half()], folder / "tensors.tar")
    joblib.dump(value, folder / "joblib.tar", compress=True)


def _read_torch_files(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            torch_file.load(path, tensors=True)


def _weights(folder: Path) -> None:
    state = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pth")
    save_file({name: t.numpy() for name, t in state.items()}, folder / "a.safetensors")


def _read_weights(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(RuntimeError):
            checkpoint._state(path)


def _logits(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 5)).astype("f4")
    columns = {"logits": values, "keys": np.array([*"abcdef"]), "labels": np.arange(6) % 5}
    np.save(folder / "a.npy", values)
    np.savez(folder / "b.npz", **columns)
    np.savez_compressed(folder / "c.npz", logits=values)
    save_file({"logits": values.astype("f2")}, folder / "d.safetensors")
    save_tensors({"x": torch.from_numpy(values).bfloat16()}, folder / "e.safetensors")


def _read_logits(folder: Path) -> None:
    for path in [*folder.iterdir()]:
        with contextlib.suppress(OSError, ValueError, ArithmeticError):
            logits = logits_file.read(path)
            dense._table(logits, path)
            logits.rows(0, np.arange(logits.values_VNC.shape[1]))


def _soft_labels(write: Callable[[Path, foreign_files.Sizes], object]) -> Work:
    """A data set of three pictures in `data`, and soft labels of it in `soft`."""

    def make(folder: Path) -> None:
        write(folder / "soft", foreign_files.pictures(folder / "data", 1))

    return make


def _import(kind: imports.Kind) -> Work:
    def read(folder: Path) -> None:
        places = {"source": folder / "soft", "out": folder / "out", "data": str(folder / "data")}
        numbers = {"classes": foreign_files.CLASSES, "size": 32, "fkd_seed": 42}
        with contextlib.suppress(ValueError), contextlib.redirect_stdout(io.StringIO()):
            imports.import_(kind, keep="", dataset_index=None, **places, **numbers)  # type: ignore[arg-type]

    return read


def _tinyvit(folder: Path, sizes: foreign_files.Sizes) -> None:
    keys = [name.rpartition("/")[2] for name in sizes]
    foreign_files.tinyvit(folder, keys, [foreign_files.label_of(name) for name in sizes])


def _run(folder: Path) -> None:
    rows = [{"step": 1, "epoch": 1, "loss": 1.5, "lr": 0.1, "top1": 50.0, "top5": 90.0}] * 2
    logged = "".join(json.dumps(row) + "\n" for row in rows)
    config = {
        "recipe": asdict(recipes.load("digits")), "cache_fingerprint": "sha256:0", "num_views": 4,
        "view_size": 32, "eval_size": 32, "cache": "c.zarr", "data": "data", "class_names": ["a"],
        "teacher": asdict(lab.TEACHER), "views": asdict(ViewSpec(32)), "samples": 9,
        "validation_images": 5,
    }  # fmt: skip
    result = dict.fromkeys(("top1", "top1_ema", "top1_best", "loss", "seconds"), 1.0)
    result |= {"student": "test", "mode": "kd", "cache_fingerprint": "sha256:0"}
    result |= {"images_per_second": 1.0, "data_wait": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    for name in ("log.jsonl", "steps.jsonl"):
        (folder / name).write_text(logged)
    (folder / "failed.json").write_text('{"error": "NaN"}')
    (folder / "digests.json").write_text('{"sha256": {"other": ["0"]}}')
    (folder / "model").mkdir()
    reports.swept(folder / "sweep")


def _read_run(folder: Path) -> None:
    for work in (
        lambda: run_dir.accuracies(folder),
        lambda: run_state.why(folder),
        lambda: run_section.section(
            run_facts.facts(folder, EvalOptions(torch.device("cpu")), views=0)
        ),
        lambda: sweep_section.section(sweep_section.facts(folder / "sweep")),
    ):
        with contextlib.suppress(OSError, KdcacheError):
            work()


def _responses(folder: Path) -> None:
    page = b'<html><a href="a.tar">a</a> <a href="http://127.0.0.1:1/b.tar">b</a></html>'
    for name, head, body in (
        ("HEAD", b"200 OK", b""),
        ("GET", b"206 Partial Content\r\nContent-Range: bytes 0-9/10", b"0123456789"),
        ("PAGE", b"200 OK\r\nContent-Type: text/html", page),
        ("MOVED", b"302 Found\r\nLocation: /GET", b""),
        ("CHUNKED", b"200 OK\r\nTransfer-Encoding: chunked", b"a\r\n0123456789\r\n0\r\n\r\n"),
    ):
        size = 10 if name == "HEAD" else len(body)
        length = b"" if name == "CHUNKED" else f"\r\nContent-Length: {size}".encode()
        text = b"HTTP/1.1 " + head + length + b"\r\nConnection: close\r\n\r\n" + body
        (folder / name).write_bytes(text)


@contextlib.contextmanager
def _answering(folder: Path) -> Iterator[str]:
    """A server that sends the bytes of a file, by the path of the request, and hangs up."""
    server, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                asked, _ = server.accept()
                with asked:
                    asked.settimeout(5)
                    request = asked.recv(2**16).split(b"\r\n")[0].decode(errors="replace")
                    method, path, *_ = [*request.split(" "), ""]
                    name = "HEAD" if method == "HEAD" else path.rpartition("/")[2] or "PAGE"
                    file = folder / name
                    asked.sendall((file if file.is_file() else folder / "GET").read_bytes())
                    asked.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        with socket.create_connection(server.getsockname()):
            pass
        thread.join(5)
        server.close()


def _read_responses(folder: Path) -> None:
    patience, fsspec_client.FIRST_PAUSE, fsspec_client.TRIES = fsspec_client.FIRST_PAUSE, 0.0, 2
    try:
        with _answering(folder) as url:
            client = fsspec_client.FsspecClient(url)
            for work in (
                lambda: client.read("GET", 2**20),
                lambda: client.read("MOVED", 2**20),
                lambda: client.part("CHUNKED", 0, 10, 10),
                lambda: client.sized("GET", 10),
                lambda: client.find("*.tar"),
            ):
                with contextlib.suppress(OSError):
                    work()
    finally:
        fsspec_client.FIRST_PAUSE, fsspec_client.TRIES = patience, 7


READERS = {
    "tar": Reader(_shard, _all_images, edited="*.tar", examples=25),
    "info_json": Reader(_shard, _all_images, edited=info_json.NAME, examples=25),
    "tar_index": Reader(
        _tar_index,
        lambda folder: tar_index.unpack((folder / "train-0.idx").read_bytes(), "train-0.idx"),
        _seal_index,
        examples=25,
    ),
    "parquet": Reader(_parquet, _all_rows, examples=25),
    "arrow": Reader(_arrow, _all_rows, examples=25),
    "picture": Reader(_pictures, _decode, examples=40),
    "beton": Reader(_beton, _all_images, examples=25),
    "cache_metadata": Reader(_cache, _read_cache, _seal_cache, "c.zarr/**/*.json"),
    "cache_chunk": Reader(_cache, _read_cache, _seal_chunk, "c.zarr/[tp]*/**/c/**/*"),
    "sample_table": Reader(_cache, _read_cache, _seal_chunk, "c.zarr/samples/**/*"),
    "zip_cache": Reader(_zip, _read_cache),
    "recipe": Reader(_recipes, _read_recipes, examples=10),
    "text": Reader(_texts, _read_texts, examples=10),
    "torch_file": Reader(_torch_files, _read_torch_files, examples=25),
    "weights": Reader(_weights, _read_weights, examples=10),
    "logits": Reader(_logits, _read_logits),
    "fkd": Reader(_soft_labels(foreign_files.fkd), _import("fkd"), edited="soft/**/*"),
    "sre2l": Reader(
        _soft_labels(lambda folder, sizes: foreign_files.sre2l(folder, sizes, "cutmix")),
        _import("fkd"),
        edited="soft/**/*",
    ),
    "ml_dr": Reader(_soft_labels(foreign_files.ml_dr), _import("ml-dr"), edited="soft/**/*"),
    "tinyvit": Reader(_soft_labels(_tinyvit), _import("tinyvit"), edited="soft/**/*"),
    "run": Reader(_run, _read_run, edited="**/*.json*", examples=10),
    "http": Reader(_responses, _read_responses, examples=10),
}
