"""Targets of one teacher, from the CPU in fp32 and from the device in each precision.

A random network predicts nearly the same of every picture, so that any two agree. The teacher's
head is centred and scaled: over the pictures, its logits have a mean of zero and a deviation of
SCALE.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from benchmarks.gpu import workbench
from benchmarks.gpu.budget import Allowance
from benchmarks.gpu.workbench import Figures, Workbench
from benchmarks.pairs import Pair, write
from cache_tools.combine import diff
from cache_tools.render import decode
from pipeline import recipe as recipes
from pipeline.run import run

SAMPLES, FEW = 96, 16
"""Pictures, and those of the short form."""
SCALE = 3.0
BATCH = 32


def measure(bench: Workbench, allowance: Allowance) -> Figures:
    """Compare each precision of the device with the CPU's fp32."""
    name, size = (workbench.SHORT.teacher, 32) if bench.short else (workbench.TEACHER, 224)
    samples = FEW if bench.short else SAMPLES
    precisions = ("fp32", "bf16", *(["fp16"] if bench.device.type == "cuda" else []))
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        work = Path(folder)
        write(Pair("", name, size, BATCH, steps=0), samples, work / "data", bench.encoded)
        teacher = calibrated(name, size, bench.encoded, work / "teacher")
        made = {}
        for device, precision in [("cpu", "fp32"), *((bench.device.type, p) for p in precisions)]:
            key = f"{device} {precision}" if made else "reference"
            changes = ["num_views=1", f"views.size={size}", f"precision={precision}"]
            changes += ["dataset.labels=ignore", f"batch_size={BATCH}"]
            recipe, out = recipes.load("photos", changes), work / f"{key}.zarr"
            made[key] = run(recipe, str(work / "data"), str(teacher), out, device)
        reference = diff.OfCache(made.pop("reference"))
        found = {key: diff.diff(reference, diff.OfCache(store)) for key, store in made.items()}
    torch.set_num_threads(threads)
    for facts in found.values():
        del facts["a"], facts["b"]
    return {"teacher": name, "views": samples, "of the CPU in fp32": found}


def calibrated(name: str, size: int, encoded: list[bytes], folder: Path) -> Path:
    """Save a random network with a head that is centred and scaled on some pictures."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    head = model.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    decoded = [decode.decode(data, "picture") for data in encoded[:BATCH]]
    pictures = [cv2.resize(picture, (size, size)) for picture in decoded]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        model(x / 127.5 - 1)
    handle.remove()
    with torch.no_grad():
        features = inputs[0].clone()
        mean = features.mean(0)
        head.weight.mul_(SCALE / ((features - mean) @ head.weight.T).std())
        head.bias.copy_(-(head.weight @ mean))
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def lines(name: str, found: Figures) -> Iterator[str]:
    """Differences in lines of text."""
    yield f"| {name} of {found['teacher']} and the CPU's in fp32 | KL, T = 1 | p99 | top-1 |"
    yield "|---|---|---|---|"
    for key, facts in found["of the CPU in fp32"].items():
        kl, p99 = facts["kl_t1_mean"], facts["kl_t1_p99"]
        yield f"| {key} | {kl:.2e} | {p99:.2e} | {facts['top1_agreement']:.1f} % |"
    yield ""
