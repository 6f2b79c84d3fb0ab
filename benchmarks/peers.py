"""Record layouts of other systems for teacher logits, written by our own code.

Each peer turns dense logits into the bytes its own writer would leave on disk (`encode`) and those
bytes into the distribution its own trainer would train on (`restore`). Nothing is repaired
on the way: a negative tail stays negative, a sum above 1 stays above 1, a class id that fp16 cannot
hold comes back as another class. `divergence` clips, `restore` never does more than its peer does.

Where a peer leaves room, it gets the better choice: the softmax is computed in float64 and rounded
once, whatever the peer's teacher runs in; DistillKit's fit is solved in float64 and its parquet
costs nothing; files hold as many views as the published caches' do. Crop boxes, flips and seeds
are drawn at random: their bytes count, their values do not matter.

`encode` takes the views in order, so many of an image after each other. Views of different images
serve as well: sizes of pickles do not depend on it, and what is compressed gets no chance to match
one view of a photo against the next.

Facts: microsoft/Cream (TinyViT), szq0214/FKD, apple/ml-dr; DistillKit is in `distillkit`.
`restore` unpickles what `encode` made, so nothing here reads a peer's real, untrusted files.

Shapes: B views, K kept classes, C classes, N bytes of a record.
"""

import gzip
import io
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self

import numpy as np
import torch
import zarr
from numpy.typing import ArrayLike, NDArray

F2 = NDArray[np.float16]
F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I2 = NDArray[np.int16]
I8 = NDArray[np.int64]
U1 = NDArray[np.uint8]

FLOOR = 1e-12
"""What a restored probability counts as, at least, when a divergence is taken."""


@dataclass(frozen=True)
class Stored:
    """Files of a peer for B views."""

    files: dict[str, bytes]
    """Every file by its path in the peer's folder."""
    views: int
    classes: int

    @property
    def bytes_per_view(self) -> float:
        """All bytes of all files, per view."""
        return sum(map(len, self.files.values())) / self.views

    def write(self, folder: Path) -> Path:
        """Lay the files down below a folder, and return it."""
        for path, data in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder


class Peer(Protocol):
    """One way to store teacher logits."""

    @property
    def name(self) -> str:
        """Name in tables."""

    def record_bytes(self, classes: int) -> int | None:
        """Fixed bytes of one view without keys and containers; None: there is no such number."""

    def encode(self, logits_BC: ArrayLike) -> Stored:
        """Encode these views as the peer's writer does."""

    def restore(self, stored: Stored) -> F8:
        """Restore the distributions [B, C] of the peer's trainer, at T = 1."""


def log_softmax(logits_BC: ArrayLike, temperature: float = 1.0) -> F8:
    """ln softmax(z / T) of each row, in float64."""
    scaled_BC = np.asarray(logits_BC, np.float64) / temperature
    scaled_BC = scaled_BC - scaled_BC.max(axis=1, keepdims=True)
    log_BC: F8 = scaled_BC - np.log(np.exp(scaled_BC).sum(axis=1, keepdims=True))
    return log_BC


def softmax(logits_BC: ArrayLike, temperature: float = 1.0) -> F8:
    """softmax(z / T) of each row, in float64."""
    p_BC: F8 = np.exp(log_softmax(logits_BC, temperature))
    return p_BC


def divergence(logits_BC: ArrayLike, restored_BC: F8, temperature: float = 1.0) -> F8:
    """KL(teacher ‖ restored) of each view in nats, both at T, in float64.

    The teacher is softmax(z / T), untouched. Restored probabilities below `FLOOR`, zero and
    negative ones among them, count as `FLOOR`; then p^(1/T) is normalised. So a class that a peer
    dropped costs its teacher mass times ln(p / 1e-12) at T = 1, not infinity, and a sum other than
    1 costs nothing by itself.
    """
    teacher_BC = log_softmax(logits_BC, temperature)
    powered_BC = np.maximum(restored_BC, FLOOR) ** (1.0 / temperature)
    powered_BC /= powered_BC.sum(axis=1, keepdims=True)
    kl_B: F8 = (np.exp(teacher_BC) * (teacher_BC - np.log(powered_BC))).sum(axis=1)
    return kl_B


@dataclass(frozen=True)
class TinyViT:
    """`int32 seed, int16 index[K], float16 probability[K]`, most probable first, T = 1.

    Values and keys lie in two files per epoch and rank. The trainer gives every other class
    (1 - Σp) / (C - K) in float32 without a limit: fp16 rounding can make that negative.
    """

    top_k: int
    epoch: int = 0

    @property
    def name(self) -> str:
        return f"TinyViT K={self.top_k}"

    @property
    def folder(self) -> str:
        """Folder of an epoch in its reader's layout."""
        return f"logits_top{self.top_k}_epoch{self.epoch}"

    def record_bytes(self, classes: int) -> int:
        return 4 + 4 * self.top_k

    def encode(self, logits_BC: ArrayLike) -> Stored:
        """Records of views whose keys are their numbers, as its ImageNet-1k data set has them."""
        p_BC = softmax(logits_BC).astype(np.float16)
        views, classes = p_BC.shape
        if classes > np.iinfo(np.int16).max + 1:
            raise ValueError(f"{classes} classes: TinyViT's int16 index ends at 32,767")
        records_B = np.empty(views, _tinyvit_record(self.top_k))
        records_B["seed"] = np.random.default_rng(0).integers(0, 1 << 31, views)
        records_B["index"] = index_BK = top(p_BC, self.top_k)
        records_B["value"] = np.take_along_axis(p_BC, index_BK, 1)
        keys = "".join(f"{view}\n" for view in range(views))
        rank = f"{self.folder}/rank0"
        files = {f"{rank}-values.bin": records_B.tobytes(), f"{rank}-keys.txt": keys.encode()}
        return Stored(files, views, classes)

    def restore(self, stored: Stored) -> F8:
        values = stored.files[f"{self.folder}/rank0-values.bin"]
        records_B = np.frombuffer(values, _tinyvit_record(self.top_k))
        value_BK = records_B["value"].astype(np.float32)
        return _spread(records_B["index"].astype(np.int64), value_BK, stored.classes)


def _tinyvit_record(top_k: int) -> np.dtype[np.void]:
    return np.dtype([("seed", "<i4"), ("index", "<i2", (top_k,)), ("value", "<f2", (top_k,))])


class TinyViTReader:
    """Reader of single records with the steps, and so the cost, of TinyViT's own reader.

    The keys of a rank's file are read into a dictionary once; a record is a seek, a read and three
    `np.frombuffer`, two of them copied because torch requires writable arrays. As there, a file
    that ends early gives shorter arrays and no error.
    """

    def __init__(self, folder: Path, top_k: int) -> None:
        self.top_k = top_k
        self.size = 4 + 4 * top_k
        lines = (folder / "rank0-keys.txt").read_text().splitlines()
        self.rows = {key: row for row, key in enumerate(lines)}
        self.file: BinaryIO = (folder / "rank0-values.bin").open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, key: str) -> tuple[int, I2, F2]:
        """Seed, class ids [K] and probabilities [K] of one view; KeyError where there is none."""
        self.file.seek(self.size * self.rows[key])
        record = self.file.read(self.size)
        seed = int(np.frombuffer(record[:4], np.int32)[0])
        record = record[4:]
        index_K = np.frombuffer(record[: 2 * self.top_k], np.int16).copy()
        record = record[2 * self.top_k :]
        return seed, index_K, np.frombuffer(record[: 2 * self.top_k], np.float16).copy()


@dataclass(frozen=True)
class FKD:
    """One `torch.save` per image: crop boxes [V, 4], flips [V] and labels [V, 2, K].

    labels[:, 0] are class ids *as floats*, labels[:, 1] probabilities; float16 holds ids exactly
    only up to 2,048. "smoothing" spreads 1 - Σp over the other classes, "renorm" drops them.
    Its trainer cannot scatter float16 labels at all; they are restored as after a cast to float32.
    """

    top_k: Literal[5, 10] = 5
    dtype: Literal["float32", "float16"] = "float32"
    crops: int = 500
    """Views in a file. A file costs about 1.8 kB whatever it holds."""
    tail: Literal["smoothing", "renorm"] = "smoothing"

    @property
    def name(self) -> str:
        renorm = " renorm" if self.tail == "renorm" else ""
        return f"FKD k{self.top_k} {self.dtype}{renorm}, {self.crops} crops"

    def record_bytes(self, classes: int) -> int:
        return (4 + 2 * self.top_k) * np.dtype(self.dtype).itemsize + 1

    def encode(self, logits_BC: ArrayLike) -> Stored:
        p_BC = softmax(logits_BC).astype(np.float32)
        index_BK = top(p_BC, self.top_k)
        value_BK = np.take_along_axis(p_BC, index_BK, 1)
        labels = np.stack([index_BK, value_BK], axis=1).astype(self.dtype)
        box_B4, flip_B = _crops(len(p_BC))
        coords_B4 = (box_B4 / [375, 500, 375, 500]).astype(self.dtype)
        files = {
            f"imagenet/train/n00000000/{i}.tar": _torch_bytes([coords_B4[s], flip_B[s], labels[s]])
            for i, s in enumerate(_images(len(p_BC), self.crops))
        }
        return Stored(files, *p_BC.shape)

    def restore(self, stored: Stored) -> F8:
        loaded = [torch.load(io.BytesIO(d), weights_only=False) for d in stored.files.values()]
        labels = np.concatenate([labels for _, _, labels in loaded]).astype(np.float32)
        index_BK, value_BK = labels[:, 0].astype(np.int64), labels[:, 1]
        if self.tail == "smoothing":
            return _spread(index_BK, value_BK, stored.classes)
        return dense(index_BK, value_BK / value_BK.sum(1, keepdims=True), 0.0, stored.classes)


@dataclass(frozen=True)
class MlDr:
    """Apple's ml-dr (ImageNet+): per image a pickled list of {params, probabilities, class ids}.

    Probabilities are Python floats, params those of its RandomResizedCrop and flip. Published as
    one tar.gz, which `gz` counts (gzip's default level 6, as `tar cz`); its trainer needs it
    unpacked. `densify: smooth` spreads 1 - Σp, but where the float32 sum exceeds 1 it takes the
    softmax of the *probabilities* over the kept classes and nothing for the others.
    """

    top_k: int = 10
    samples: int = 400
    """Views in a file; published are 400, and 100 and 50 in smaller variants."""
    gz: bool = False

    @property
    def name(self) -> str:
        return f"ml-dr K={self.top_k} {'tar.gz' if self.gz else 'raw'}, {self.samples} views"

    def record_bytes(self, classes: int) -> None:
        """None: a pickled int takes two, three or five bytes."""

    def encode(self, logits_BC: ArrayLike) -> Stored:
        p_BC = softmax(logits_BC).astype(np.float32)
        index_BK = np.argpartition(p_BC, -self.top_k, axis=1)[:, -self.top_k :]
        value_BK = np.take_along_axis(p_BC, index_BK, 1)
        box_B4, flip_B = _crops(len(p_BC))
        views: list[dict[str, Any]] = [
            {"params": [tuple(box), flip], "prob": (value, index)}
            for box, flip, value, index in zip(
                box_B4.tolist(), flip_B.tolist(), value_BK.tolist(), index_BK.tolist(), strict=True
            )
        ]
        files = {
            f"reinforced_data/{i}.pth.tar": _torch_bytes((i, views[s]), 4)
            for i, s in enumerate(_images(len(views), self.samples))
        }
        return Stored(_tar_gz(files) if self.gz else files, *p_BC.shape)

    def restore(self, stored: Stored) -> F8:
        files = _untar(stored.files) if self.gz else stored.files
        loaded = [torch.load(io.BytesIO(data), weights_only=False) for data in files.values()]
        pairs = [view["prob"] for _, views in loaded for view in views]
        value_BK = np.array([value for value, _ in pairs], np.float32)
        index_BK = np.array([index for _, index in pairs], np.int64)
        smooth_BC = _spread(index_BK, value_BK, stored.classes)
        softened_BC = dense(index_BK, softmax(value_BK), 0.0, stored.classes)
        # whether a sum passes 1 hangs on the order of float32 additions: torch's, as in its loader
        sum_B = np.array([torch.tensor(value).sum().item() for value, _ in pairs])
        return np.where(sum_B[:, None] > 1, softened_BC, smooth_BC)


def _tar_gz(files: dict[str, bytes]) -> dict[str, bytes]:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return {"reinforced_data.tar.gz": gzip.compress(raw.getvalue(), 6, mtime=0)}


def _untar(files: dict[str, bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(files["reinforced_data.tar.gz"]), mode="r:gz") as tar:
        members = [(entry.name, tar.extractfile(entry)) for entry in tar.getmembers()]
        return {path: file.read() for path, file in members if file is not None}


@dataclass(frozen=True)
class PlainZarr:
    """Baseline layout: u2 class ids and f2 log-probabilities, by rank.

    Chunks and codecs are zarr v3's defaults (zstd); metadata files count. There
    is no trainer to follow: the rest goes to the other classes, and is 0 where rounding made it
    negative.
    """

    top_k: int

    @property
    def name(self) -> str:
        return f"plain zarr K={self.top_k}"

    def record_bytes(self, classes: int) -> int:
        """Before compression."""
        return 4 * self.top_k

    def encode(self, logits_BC: ArrayLike) -> Stored:
        log_BC = log_softmax(logits_BC)
        index_BK = top(log_BC, self.top_k)
        log_BK = np.take_along_axis(log_BC, index_BK, 1)
        with tempfile.TemporaryDirectory() as folder:
            group = zarr.create_group(folder, zarr_format=3)
            group.create_array("index", data=index_BK.astype(np.uint16))
            group.create_array("log_probability", data=log_BK.astype(np.float16))
            found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        return Stored(files, *log_BC.shape)

    def restore(self, stored: Stored) -> F8:
        with tempfile.TemporaryDirectory() as folder:
            group = zarr.open_group(stored.write(Path(folder)), mode="r")
            index_BK, log_BK = (np.asarray(group[n]) for n in ("index", "log_probability"))
        p_BK = np.exp(log_BK.astype(np.float64))
        rest_B1 = np.maximum(1 - p_BK.sum(1, keepdims=True), 0.0)
        rest_B1 /= stored.classes - self.top_k
        return dense(index_BK.astype(np.int64), p_BK, rest_B1, stored.classes)


def top(p_BC: NDArray[Any], top_k: int) -> I8:
    """Ids of the largest, largest first; of equal ones the lower id."""
    return np.argsort(-p_BC, axis=1, kind="stable")[:, :top_k]


def _spread(index_BK: I8, value_BK: F4, classes: int) -> F8:
    """Remainder to 1 in float32, shared by the other classes, with its sign."""
    rest_B1 = np.float32(1) - value_BK.sum(1, keepdims=True)
    return dense(index_BK, value_BK, rest_B1 / np.float32(classes - index_BK.shape[1]), classes)


def dense(index_BK: I8, value_BK: NDArray[Any], rest_B1: ArrayLike, classes: int) -> F8:
    """[B, C] with the values at their classes and the rest at each of the others."""
    p_BC = np.empty((len(index_BK), classes))
    p_BC[:] = rest_B1
    np.put_along_axis(p_BC, index_BK, value_BK, 1)
    return p_BC


def _crops(views: int) -> tuple[I8, NDArray[np.bool_]]:
    """Boxes [B, 4] (top, left, height, width) in a picture of 375×500, and flips."""
    random = np.random.default_rng(0)
    extent_B2 = random.integers([106, 141], [376, 501], (views, 2))
    corner_B2 = random.integers(0, np.array([375, 500]) - extent_B2 + 1)
    return np.hstack([corner_B2, extent_B2]), random.random(views) < 0.5


def _images(views: int, views_per_image: int) -> Iterator[slice]:
    """Groups of views of one image; the last may have fewer."""
    for start in range(0, views, views_per_image):
        yield slice(start, start + views_per_image)


def _torch_bytes(value: object, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    return buffer.getvalue()
