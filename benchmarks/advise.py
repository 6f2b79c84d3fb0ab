"""Estimated and measured errors of gradients: the calibration of the warnings of kdcache.

    python -m benchmarks.advise LOGITS.npz [--rows 256] [--scales 1,1.5,2.5] [--json FILE]

Real logits (scaled: of a more confident teacher) are made sparse, encoded and decoded. "measured"
is the relative error of a late student's gradient by autograd (`train.advise.gradients`),
"estimated" that of `cache_tools.targets.gradient_error`, which has the stored targets alone. A
warning is due where the measured cosine is below that of the limit. T is declared, but for the rows
with a "-", of which another warning names T.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from cache_tools.spec.targets import TargetSpec
from cache_tools.targets import codec, dense, gradient_error
from train import recipe as recipes
from train.advise import sample
from train.advise.gradients import Gradients
from train.advise.sample import Sample

TEMPERATURES = (1.0, 2.0, 4.0)
LOSSES = {"kd": ("uniform", "bucket", "zero"), "dkd": ("uniform",), "dist": ("uniform",)}
SPECS = (
    *(TargetSpec(k, 0.0, k) for k in (5, 20, 100)),
    TargetSpec(64, 1e-3),
    TargetSpec(200, 1e-4),
)


def measure(found: Sample, scale: float) -> Iterator[dict[str, Any]]:
    """Compare every setting at one scale of the logits."""
    scaled = replace(found, logits_BC=found.logits_BC * np.float32(scale))
    classes = scaled.logits_BC.shape[1]
    for t, loss in product(TEMPERATURES, LOSSES):
        values = {"student": "resnet18", "epochs": 1, "temperature": t, "loss": loss}
        gradients = Gradients(scaled, recipes.load(values))
        for spec, declared in product(SPECS, (True, False) if t > 1 else (True,)):
            one = replace(
                spec,
                temperatures=(1.0, t) if declared and t > 1 else (1.0,),
                true_class=loss == "dkd",
                tail_square=loss == "dist",
            )
            sparse = dense.sparsify(scaled.logits_BC, one, scaled.label_BP)
            stored = codec.encode(sparse, one, classes)
            for tail in LOSSES[loss]:
                late = gradients.compare(stored, one, tail)["late"]
                known = codec.decode(stored, one), one, classes
                estimated = gradient_error.estimate(*known, t, tail, loss)
                yield {
                    "scale": scale,
                    "T": f"{t:g}" if declared else f"{t:g}-",
                    "loss": loss,
                    "tail": tail,
                    "keep": f"k={spec.k_max}" if spec.tau == 0 else f"tau={spec.tau:g}",
                    "measured": late.error,
                    "cosine": late.cosine,
                    "estimated": estimated,
                    "warned": estimated > gradient_error.LIMIT or not (declared or tail == "zero"),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("logits", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--scales", default="1,1.5,2.5")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = sample.of_file(options.logits, options.rows)
    scales = [float(scale) for scale in options.scales.split(",")]
    layout, rows = "{:>5} {:>3} {:5} {:8} {:9} {:>9} {:>7} {:>9} {}", []
    for scale in scales:
        for row in measure(found, scale):
            if not rows:
                print(layout.format(*row))
            rows.append(row)
            cells = (f"{v:.3f}" if isinstance(v, float) else v for v in list(row.values())[1:-1])
            print(layout.format(scale, *cells, "warned" if row["warned"] else ""), flush=True)
    due = gradient_error.cosine(gradient_error.LIMIT)
    summary: dict[str, Any] = {}
    for loss in LOSSES:
        mine = [row for row in rows if row["loss"] == loss]
        ratios = [math.log(row["measured"] / row["estimated"]) for row in mine]
        summary[loss] = {
            "settings": len(mine),
            "due": sum(row["cosine"] < due for row in mine),
            "due, no warning": sum(row["cosine"] < due and not row["warned"] for row in mine),
            "warning, not due": sum(row["cosine"] >= due and row["warned"] for row in mine),
            "measured / estimated": [
                round(math.exp(q), 2) for q in np.quantile(ratios, (0.1, 0.5, 0.9)).tolist()
            ],
        }
        print(f"{loss}: {summary[loss]}")
    if options.json:
        facts = {"rows": rows, "summary": summary, "machine": machine(("numpy", "torch"))}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
