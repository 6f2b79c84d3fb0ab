"""The test vectors of FORMAT.md, section 3.5, computed with numpy alone.

`python tests/vectors.py` prints them and exits 1 when FORMAT.md has others: run it under any numpy.
"""

import sys

import numpy as np

from cache_tools.spec.views import ViewSpec
from cache_tools.views import draw, ops
from tests.helpers.paths import ROOT

FORMAT = ROOT / "cache_tools/FORMAT.md"
FULL = ViewSpec(
    size=224,
    degrees=15.0,
    auto_augment="rand-m7-mstd0.5-inc1",
    three_augment=True,
    color_jitter=(0.3, 0.3, 0.3, 0.1),
    re_prob=0.6,
    re_mode="rand",
    mixup=0.2,
    cutmix=1.0,
    seed=42,
)
AFFINES = (ops.AFFINE_BILINEAR, ops.AFFINE_BICUBIC)


def in_format() -> list[str]:
    """The rows as FORMAT.md has them."""
    return [r for r in FORMAT.read_text("utf-8").splitlines() if r.startswith("| n01440764")]


def table(renderer: str = "kernels-2") -> list[str]:
    """The rows as they are computed here and now."""
    ids = {row.split()[1]: int(row.split()[2], 16) for row in in_format()}
    id_N = np.array(list(ids.values()), np.uint64)
    mixed, sides = draw.mix(FULL, id_N, 3), (np.full(4, 375, np.int32), np.full(4, 500, np.int32))
    first = id_N[np.minimum(np.arange(4), mixed.partner_B)]
    drawn = draw.draw(FULL, id_N, *sides, 3, None if renderer == "kernels-1" else first)
    return [_row(key, i, drawn, mixed, id_N) for i, key in enumerate(ids)]


def _row(key: str, i: int, drawn: draw.ViewParams, mixed: draw.MixParams, id_N: np.ndarray) -> str:
    steps = [
        f"{ops.NAMES[code]} {' '.join(map(str, values if code in AFFINES else values[:1]))}"
        for code, values in zip(
            drawn.codes_BL[i].tolist(), drawn.arguments_BL6[i].tolist(), strict=True
        )
        if code
    ]
    erased = [" ".join(map(str, box)) for box in drawn.erase_BE8[i].tolist() if box[2]]
    mix = f"{mixed.partner_B[i]}: {mixed.lam_B[i]}, {mixed.cut_B4[i].tolist()}"
    flip = "flip" if drawn.flip_B[i] else "no flip"
    cells = [f"{key} {int(id_N[i]):016x}", str(drawn.box_B4[i].tolist()), flip]
    return "| " + " | ".join([*cells, "; ".join(steps), "; ".join(erased), mix]) + " |"


if __name__ == "__main__":
    print(f"numpy {np.__version__}")
    print("\n".join(table()))
    sys.exit(table() != in_format())
