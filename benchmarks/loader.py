"""Images per second and core of our loaders, beside those of other libraries.

    python -m benchmarks.loader [--dali PYTHON] [--repeats 5] [--samples 2048] [--json FILE]

The pictures are JPEGs made from photographs (`benchmarks.render`), 500×375 at quality 90 like
ImageNet's, and with the short side at 256. The contestants (`benchmarks.pipelines`) take turns of
one whole epoch, each round beginning with another one, so that a noisy machine hits all alike; each
has had an epoch to compile and to start its workers before. Each has a thread or a worker per core
that it may use: `taskset -c 0 python -m …` measures all on one. Two clocks: CPU seconds of the
process and its workers, of which the rates per core are made, and wall seconds, which other
programs disturb. Ratios are taken within a round; figures are the median and range over the rounds.

FFCV needs `make ffcv`; without it, its rows are left out. DALI and SPDL (`benchmarks.apart`) need
an environment of their own, whose Python is the argument of `--dali`; without it, theirs are:

    python3 -m venv build/dali
    build/dali/bin/pip install nvidia-dali-cuda120 spdl numpy psutil  # and FFmpeg 4 to 9, for SPDL

"Beside the pixels" is the loader's work on a cached run beside the pixels (`benchmarks.beside`), as
a share of a view's CPU time in the native loader on the same augmentation.
"""

import argparse
import importlib.util
import json
import logging
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import apart, beside, photos, pipelines
from benchmarks.machine import machine
from benchmarks.photos import KINDS
from benchmarks.rounds import Figure, play, ratio, shown, spread
from benchmarks.seats import Seat, Turn
from cache_tools.data.beton import writer
from cache_tools.data.open import open_images
from cache_tools.runtime import threads

OURS: dict[str, pipelines.Make] = {
    "decode alone": pipelines.decode_alone,
    "native": pipelines.native,
    "native, A2": partial(pipelines.native, cache="a2"),
    "native, A2, 3 repeats": partial(pipelines.native, cache="a2", repeats=3),
}
REPLAY: dict[str, pipelines.Make] = {
    "ffcv replay": pipelines.ffcv_replay,
    "ffcv replay, raw": partial(pipelines.ffcv_replay, raw=True),
    "ffcv replay, A2": partial(pipelines.ffcv_replay, cache="a2"),
}
FFCV: dict[str, pipelines.Make] = {
    "FFCV": pipelines.ffcv_own,
    "FFCV, raw": partial(pipelines.ffcv_own, raw=True),
}
PEERS: dict[str, pipelines.Make] = {
    "torchvision": pipelines.torchvision,
    "torchvision, tensors": partial(pipelines.torchvision, tensors=True),
    "timm": pipelines.timm,
    "WebDataset": pipelines.webdataset,
    "torchvision, A2": partial(pipelines.torchvision, auto_augment=True),
    "timm, A2": partial(pipelines.timm, auto_augment=pipelines.A2),
}
"""Contestants that share a process, by name."""
GOALS: tuple[tuple[str, str, Mapping[str, float]], ...] = (
    ("ffcv replay", "FFCV", dict.fromkeys(KINDS, 1.1)),
    ("ffcv replay, raw", "FFCV", dict.fromkeys(KINDS, 2.3)),
    ("native", "FFCV", dict.fromkeys(KINDS, 2.2)),
    ("native", "DALI", {"imagenet": 1.75, "short256": 2.2}),
    ("native", "decode alone", dict.fromkeys(KINDS, 1.0)),
    ("native", "torchvision", dict.fromkeys(KINDS, 1.6)),
    ("native, A2", "timm, A2", dict.fromkeys(KINDS, 4.5)),
)
"""Goals: least ratio of two contestants' rates per core, on each kind of pictures."""
BASES = ("FFCV", "DALI")
"""Contestants to whose rate all others are set."""
MOST_BESIDE = 0.01
LIBRARIES = (
    *("torch", "torchvision", "timm", "webdataset", "ffcv", "numba", "numpy"),
    *("simplejpeg", "opencv-python-headless", "pillow"),
)


def prepare(kind: str, count: int, folder: Path) -> None:
    """The pictures as shards, as a folder and as betons, and caches of them."""
    photos.write_shards(kind, count, folder)
    photos.write_folder(kind, count, folder)
    images = open_images(str(folder / "tars"), "train")
    for name, raw in (("jpeg", False), ("raw", True)):
        writer.write(images, folder / f"{name}.beton", raw, 2, lambda _: None)
    photos.write_caches(folder)


class Field:
    """The contestants of a run, each in its process."""

    def __init__(self, dali: str = "") -> None:
        """Start the processes; DALI's and SPDL's in an interpreter of this name.

        Raises:
            SystemExit: The interpreter cannot run them, for want of a package that is no loader.
        """
        self.left_out: dict[str, str] = {}
        """Libraries whose contestants are left out, and why."""
        self.versions: dict[str, str] = {}
        """Versions of libraries of the other interpreter."""
        apart_seats = self._apart(dali)
        self.seats: dict[str, Seat] = {}
        for contestants in self._of_this_environment():
            self.seats |= dict.fromkeys(contestants, Seat.of(contestants))
        self.seats |= apart_seats

    def _apart(self, dali: str) -> dict[str, Seat]:
        """Start the other interpreter."""
        if not dali:
            lack = "no interpreter of an environment that has it (--dali PYTHON)"
            self.left_out |= dict.fromkeys(apart.LIBRARIES, lack)
            return {}
        try:
            seat = Seat.in_interpreter(dali, apart.__name__)
        except OSError as error:
            raise SystemExit(f"{dali} cannot run {apart.__name__}: {error}") from None
        try:
            self.versions, lacks = seat.answer()
        except EOFError:
            seat.close()
            raise SystemExit(f"{dali} cannot run {apart.__name__}, see above") from None
        self.left_out |= lacks
        here = [name for name in apart.CONTESTANTS if name.partition(",")[0] not in lacks]
        if not here:
            seat.close()
        return dict.fromkeys(here, seat)

    def _of_this_environment(self) -> list[dict[str, pipelines.Make]]:
        """Contestants of each process."""
        if importlib.util.find_spec("ffcv"):
            return [OURS | REPLAY, FFCV, PEERS]
        self.left_out["FFCV"] = "ffcv is not installed (make ffcv)"
        return [OURS, PEERS]

    def compete(self, folder: Path, repeats: int) -> dict[str, list[Turn]]:
        """Turns of all contestants."""
        seats = self.seats
        return play([*seats], repeats, lambda name, epoch: seats[name].turn(folder, name, epoch))

    def close(self) -> None:
        """End the processes."""
        for seat in set(self.seats.values()):
            seat.close()


def summary(kind: str, turns: dict[str, list[Turn]], rest: dict[str, float]) -> dict[str, Any]:
    """Rates, ratios and the goals reached; `rest`: seconds a view of work beside its pixels."""
    view = statistics.median(turn.cpu for turn in turns["native, A2"])
    share = sum(rest.values()) / view
    reached = {
        f"{ours} at least {least[kind]} × {theirs}": (per_core(turns, ours, theirs), least[kind])
        for ours, theirs, least in GOALS
        if {ours, theirs} <= set(turns)
    }
    return {
        "images per second per core": {
            name: spread(1 / turn.cpu for turn in each) for name, each in turns.items()
        },
        "images per second": {
            name: spread(1 / turn.wall for turn in each) for name, each in turns.items()
        },
        "per core, over": {
            base: {name: per_core(turns, name, base) for name in turns}
            for base in BASES
            if base in turns
        },
        "beside the pixels": {name: value / view for name, value in rest.items()} | {"all": share},
        "goals": {
            **{goal: {**found, "held": found["median"] >= least}
               for goal, (found, least) in reached.items()},
            f"beside the pixels below {MOST_BESIDE:.0%}": {"held": share < MOST_BESIDE},
        },
    }  # fmt: skip


def per_core(turns: dict[str, list[Turn]], ours: str, theirs: str) -> Figure:
    """Ratio of two contestants' views per CPU second, round by round."""
    return ratio([turn.cpu for turn in turns[theirs]], [turn.cpu for turn in turns[ours]])


def table(kind: str, result: dict[str, Any]) -> Iterator[str]:
    """One kind of pictures in Markdown."""
    over = result["per core, over"]
    columns = [KINDS[kind], "images/s per core", *(f"over {base}'s" for base in over), "images/s"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, rate in result["images per second per core"].items():
        ratios = [shown(found[name], 2) for found in over.values()]
        cells = [name, shown(rate, 0), *ratios, shown(result["images per second"][name], 0)]
        yield f"| {' | '.join(cells)} |"
    parts = (f"{name} {share:.2%}" for name, share in result["beside the pixels"].items())
    yield f"\nbeside the pixels: {', '.join(parts)}"
    for goal, found in result["goals"].items():
        figure = f": {shown(found, 2)}" if "median" in found else ""
        yield f"{'PASS' if found['held'] else 'FAIL'}  {goal}{figure}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dali", default="", metavar="PYTHON",
                        help="interpreter of the environment that has DALI and SPDL")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2048,
                        help="pictures of each kind; at least a batch for each worker")  # fmt: skip
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    samples = max(options.samples, pipelines.BATCH * threads.cpu_count())
    logging.getLogger("kdcache").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        beside_pixels = beside.seconds(work / "block")
        field = Field(options.dali)
        try:
            for library, reason in field.left_out.items():
                print(f"{library} is left out: {reason}", flush=True)
            for kind in KINDS:
                prepare(kind, samples, work / kind)
                turns = field.compete(work / kind, options.repeats)
                results[kind] = summary(kind, turns, beside_pixels)
                print("\n".join(table(kind, results[kind])), flush=True)
        finally:
            field.close()
    results |= {"repeats": options.repeats, "samples": samples}
    results["left out"] = field.left_out
    results["machine"] = machine(LIBRARIES)
    results["machine"]["versions"] |= field.versions
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
