"""Files as TinyViT, FKD, SRe2L and ml-dr store them, field by field, and pictures."""

from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image

CLASSES = 3
Sizes = dict[str, tuple[int, int]]


def pictures(root: Path, count: int = 4) -> Sizes:
    """An ImageFolder of smooth pictures of many sizes; "class/stem" → height, width."""
    rng, sizes = np.random.default_rng(7), {}
    for label in range(CLASSES):
        for i in range(count):
            height, width = (int(n) for n in rng.integers(60, 130, 2))
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            name = f"n0{label}/n0{label}_{i}"
            path = root / f"{name}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
            sizes[name] = height, width
    return sizes


def label_of(name: str) -> int:
    return int(name[2])


def soft(rng: np.random.Generator, label: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities, falling, the label first; a rest is left for the others."""
    p = np.sort(rng.dirichlet(np.full(kept + 1, 0.5)))[::-1]
    others = rng.permutation([c for c in range(CLASSES) if c != label])[: kept - 1]
    return np.array([label, *others]), p[:kept]


def box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    h, w = int(rng.integers(20, height + 1)), int(rng.integers(20, width + 1))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def fkd(
    root: Path, sizes: Sizes, views: int = 3, kept: int = 2, dtype: str = "f4", kind: str = ""
) -> dict[str, np.ndarray]:
    """FKD's files; the boxes that were drawn, by name."""
    rng, drawn = np.random.default_rng(1), {}
    for name, (height, width) in sizes.items():
        boxes = np.array([box(rng, height, width) for _ in range(views)])
        coords = (boxes / np.array([height, width, height, width])).astype(dtype)
        flip: object = rng.random(views) < 0.5
        labels = np.stack([np.stack(soft(rng, label_of(name), kept)) for _ in range(views)])
        labels = labels.astype(dtype)
        if kind == "hard":
            labels = labels[:, 0, 0].astype(np.int64)
        if kind == "smoothing":
            labels = labels[:, :, 0]
        if kind == "old":
            flip = [int(f) for f in flip]
        path = root / "train" / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        zipped = kind != "legacy"
        torch.save([coords, flip, labels], path, _use_new_zipfile_serialization=zipped)
        drawn[name] = boxes
    return drawn


def sre2l(
    root: Path, sizes: Sizes, mix: str, epochs: int = 2, batch: int = 5, seed: int = 42
) -> dict[tuple[str, int], dict[str, object]]:
    """SRe2L's files; what was drawn and predicted, by name and epoch."""
    rng, drawn, names = np.random.default_rng(5), {}, sorted(sizes)
    generator = torch.Generator()
    generator.manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(names, generator=generator)
    for epoch in range(epochs):
        (root / f"epoch_{epoch}").mkdir(parents=True)
        batches = torch.utils.data.BatchSampler(sampler, batch, drop_last=False)
        for number, places in enumerate(batches):
            own, count = [names[i] for i in places], len(places)
            boxes = np.array([box(rng, *sizes[name]) for name in own])
            sides = np.array([[*sizes[name]] * 2 for name in own])
            flips = rng.random(count) < 0.5
            logits = np.eye(CLASSES)[[label_of(n) for n in own]] * 4 + rng.normal(size=(count, 3))
            index = rng.permutation(count) if mix else None
            lam = float(rng.beta(1, 1)) if mix else None
            corners = [np.int64(v) for v in (3, 5, 20, 30)] if mix == "cutmix" else None
            config = [
                torch.from_numpy((boxes / sides).astype("f4")),
                torch.from_numpy(flips),
                None if index is None else torch.from_numpy(index),
                lam,
                corners,
                torch.from_numpy(logits).half(),
            ]
            torch.save(config, root / f"epoch_{epoch}" / f"batch_{number}.tar")
            for at, name in enumerate(own):
                other = own[int(index[at])] if index is not None else name
                drawn[name, epoch] = {"box": boxes[at], "flip": flips[at], "partner": other}
                drawn[name, epoch] |= {"lam": lam, "logits": config[-1][at].double().numpy()}
    return drawn


def ml_dr(
    root: Path, sizes: Sizes, views: int = 3, kept: int = 2, mixed: bool = True, by: str = "torch"
) -> list[list[dict]]:
    """ml-dr's files in the order of the names, with every odd case its transforms can store."""
    rng, said = np.random.default_rng(2), []
    augmentation = {
        "uint8": {"enable": True},
        "random_resized_crop": {"enable": True, "size": 32},
        "random_horizontal_flip": {"enable": True, "p": 0.5},
        "rand_augment": {"enable": True, "p": 1.0},
        "to_tensor": {"enable": True},
        "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "random_erase": {"enable": True, "p": 0.25},
        "mixup": {"enable": mixed, "alpha": 1.0, "div_by": 2.0, "p": 0.5},
        "cutmix": {"enable": mixed, "alpha": 1.0, "p": 0.5},
    }
    config = {
        "teacher": {"name": "a,b,c,d", "timm_ensemble": True},
        "reinforce": {
            "num_samples": views, "topk": kept, "compress": True, "joblib": by == "joblib",
            "image_augmentation": augmentation,
        },
    }  # fmt: skip
    root.mkdir(parents=True)
    torch.save(config, root / "config.pth.tar")
    names = list(sizes)
    for i, name in enumerate(names):
        samples = []
        for view in range(views):
            index, p = soft(rng, label_of(name), kept)
            order = rng.permutation(kept)
            prob = p[order].tolist(), index[order].tolist()
            other = int(rng.integers(len(names)))
            pair = mixed and view % 4 != 3
            one = [_own(rng, sizes[n]) for n in (name, names[other])]
            params: list = [other if pair else None] if mixed else []
            params += [[a, b] if pair else a for a, b in zip(*one, strict=True)]
            if mixed:
                lam, cut = float(rng.beta(1, 1) / 2), [0.7, *np.array([3, 5, 20, 30])]
                params += [[lam, None], [None, cut], [lam, cut], [None, None]][view % 4]
            samples.append({"params": params, "prob": prob})
        path = root / f"{i}.pth.tar"
        if by == "joblib":
            joblib.dump((i, samples), path, compress=True)
        else:
            torch.save((i, samples), path, pickle_protocol=4)
        said.append(samples)
    return said


def _own(rng: np.random.Generator, size: tuple[int, int]) -> list:
    """Crop, flip, RandAugment and erasing of one picture."""
    operations = [_operation(rng), _operation(rng)] if rng.random() < 0.9 else None
    erased = [None, (4, 6, 10, 12), (-1, 0, 0, 0)][int(rng.integers(3))]
    return [box(rng, *size), bool(rng.random() < 0.5), operations, erased]


def _operation(rng: np.random.Generator) -> tuple[int, float]:
    number = int(rng.integers(14))
    sign = 1.0 if rng.random() < 0.5 else -1.0
    signed = 0.09 if number in (1, 2) else 4.3 if number in (3, 4) else 9.0 if number == 5 else 0.27
    return number, {10: 7.0, 11: 178.5, 0: 0.0, 12: 0.0, 13: 0.0}.get(number, sign * signed)


def tinyvit(
    root: Path,
    keys: list[str],
    labels: list[int],
    kept: int = 2,
    epochs: tuple[int, ...] = (0, 1),
    ranks: int = 2,
    padded: int = 1,
) -> np.ndarray:
    """TinyViT's files; records [epochs, N] as the highest rank has them.

    Samplers pad: the first samples are seen by two ranks, with seeds and logits of their own. fp16
    softmax makes some sums exceed 1, so that the mass of the rest is negative.
    """
    kind = np.dtype([("seed", "<i4"), ("index", "<i2", (kept,)), ("p", "<f2", (kept,))])
    rng, said = np.random.default_rng(3), np.zeros((len(epochs), len(keys)), dtype=kind)
    for e, epoch in enumerate(epochs):
        folder = root / f"logits_top{kept}_epoch{epoch}"
        folder.mkdir(parents=True)
        shares = [list(range(rank, len(keys), ranks)) for rank in range(ranks)]
        shares[-1] += shares[0][:padded]
        for rank, share in enumerate(shares):
            records = np.zeros(len(share), dtype=kind)
            for at, i in enumerate(share):
                index, p = soft(rng, labels[i], kept)
                if i % 3 == 0:
                    p = np.array([0.9995, 0.00075, *[0.0] * kept])[:kept]
                records[at] = (int(rng.integers(1 << 31)), index, p.astype("f2"))
                said[e, i] = records[at]
            text = "".join(f"{keys[i]}\n" for i in share)
            (folder / f"rank{rank}-keys.txt").write_text(text)
            (folder / f"rank{rank}-values.bin").write_bytes(records.tobytes())
    return said
