"""Benchmarks of loaders: turns in processes and interpreters, what is left out, what is stubbed."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks import apart, ceiling, loader, photos, pipelines, rounds, seats
from benchmarks.render import SIDES
from benchmarks.seats import Seat, Turn
from cache_tools.render import batch, turbojpeg

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def worker(folder: Path) -> pipelines.Epoch:
    """A contestant whose work is done by a process of its own; two views an epoch."""

    def run(_: int) -> int:
        subprocess.run([sys.executable, "-c", BURN], check=True)
        return 2

    return run


def broken(folder: Path) -> pipelines.Epoch:
    raise OSError(f"no pictures in {folder}")


CONTESTANTS: dict[str, pipelines.Make] = {"worker": worker, "broken": broken}


@pytest.fixture(params=["process", "interpreter"])
def seat(request: pytest.FixtureRequest) -> Iterator[Seat]:
    other = request.param == "interpreter"
    seat = Seat.in_interpreter(sys.executable, __name__) if other else Seat.of(CONTESTANTS)
    yield seat
    seat.close()


def test_a_turn_counts_the_cpu_time_of_workers_in_every_seat(seat: Seat, tmp_path: Path) -> None:
    for epoch in range(2):
        assert seat.turn(tmp_path, "worker", epoch).cpu >= 0.3 / 2
    with pytest.raises(RuntimeError, match=f"broken: (?s:.*)no pictures in {tmp_path}"):
        seat.turn(tmp_path, "broken", 0)
    assert seat.turn(tmp_path, "worker", 2).cpu >= 0.3 / 2


def test_each_round_begins_with_another_contestant_and_the_first_is_not_counted() -> None:
    order: list[str] = []

    def turn(name: str, number: int) -> int:
        order.append(name)
        return number

    assert rounds.play(["a", "b", "c"], 2, turn) == {name: [1, 2] for name in "abc"}
    assert "".join(order) == "abcbcacab"


def test_libraries_that_are_not_here_are_left_out_by_name() -> None:
    field = loader.Field()
    try:
        assert set(field.left_out) >= {"DALI", "SPDL"}
        assert "--dali" in field.left_out["DALI"]
        here = importlib.util.find_spec("ffcv") is not None
        assert [name for name in ("FFCV", "ffcv replay") if name in field.seats] == (
            ["FFCV", "ffcv replay"] if here else []
        )
        assert ("FFCV" in field.left_out) is not here
        assert {"native", "torchvision", "decode alone"} <= set(field.seats)
    finally:
        field.close()


def test_libraries_of_another_interpreter_are_found_or_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader.Field, "_of_this_environment", lambda _: [])
    field = loader.Field(sys.executable)
    field.close()
    versions, lacks = apart.found()
    assert field.versions == versions
    assert field.left_out == lacks
    assert ("DALI" in field.seats) is ("DALI" not in lacks)


def test_an_interpreter_without_the_benchmarks_packages_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loader.Field, "_of_this_environment", lambda _: [])
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o700)
    for python in (str(script), str(tmp_path / "none")):
        with pytest.raises(SystemExit, match=f"{python} cannot run benchmarks.apart"):
            loader.Field(python)


def turns(cpu: float) -> list[Turn]:
    """Three rounds on a machine that becomes slower and slower."""
    return [Turn(noise * cpu, 2 * noise * cpu) for noise in (1.0, 3.0, 10.0)]


def test_goals_depend_on_the_pictures_and_on_who_is_there() -> None:
    field = {"native": turns(1e-3), "native, A2": turns(2e-3), "DALI": turns(2e-3)}
    results = {kind: loader.summary(kind, field, {"lookup": 1e-5}) for kind in photos.KINDS}
    for kind, held in (("imagenet", True), ("short256", False)):
        found = results[kind]["goals"]
        (goal,) = [name for name in found if name.startswith("native at least")]
        assert goal == f"native at least {1.75 if held else 2.2} × DALI"
        assert found[goal] == {"median": 2.0, "least": 2.0, "most": 2.0, "held": held}
        assert set(results[kind]["per core, over"]) == {"DALI"}
    rows = list(loader.table("short256", results["short256"]))
    assert rows[0] == "| short side 256 | images/s per core | over DALI's | images/s |"
    assert rows[2] == "| native | 333 (100 to 1,000) | 2.00 (2.00 to 2.00) | 167 (50 to 500) |"
    assert rows[-2].startswith("PASS  beside the pixels below 1%")


def test_crops_for_ffmpeg_are_those_of_a_random_resized_crop() -> None:
    draw = random.Random(3)
    for height, width in ((375, 500), (256, 341), (40, 900), (900, 40)):
        for _ in range(200):
            top, left, h, w = apart.crop(height, width, draw)
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width
            assert apart.AREA[0] * 0.9 < h * w / height / width <= 1 or 900 in (height, width)
            assert apart.RATIO[0] * 0.95 < w / h < apart.RATIO[1] * 1.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos.write_shards("short256", 192, tmp_path)
    photos.write_caches(tmp_path)
    return tmp_path


def test_the_ceiling_is_measured_without_pixels_and_the_threads_with_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = turbojpeg.region, batch.finish_views, batch.functions
    field = ceiling.contestants(folder, SIDES["short256"])
    found = rounds.play([*field], 1, lambda name, epoch: ceiling.turn(field, name, epoch))
    assert (turbojpeg.region, batch.finish_views, batch.functions) == real
    without = ["crop and flip", "A2"]
    without = [name + end for name in without for end in ("", ", with reading")]
    assert [*found] == [*without, "1", "2", "4", "8"]
    result = ceiling.summary(found)
    assert len([*ceiling.table("short256", result)]) == 13
    figures = result["without pixels, µs per view"]
    assert min(figures[name]["cpu"]["least"] for name in without) > 0
    reads = {
        reading: {name: new for _, name, new in ceiling.stubs(SIDES["short256"], reading)}
        for reading in (False, True)
    }
    pread = batch.functions()[batch._READ]
    assert reads[True]["functions"]()[batch._READ] == pread
    assert reads[False]["functions"]()[batch._READ] not in (0, pread)

    every = ceiling.stubs(SIDES["short256"], False)
    some = [stub for stub in every if stub[1] != "finish_views"]
    assert len(some) == len(every) - 1
    monkeypatch.setattr(ceiling, "stubs", lambda *_: some)
    with pytest.raises(RuntimeError, match="the loader makes pixels"):
        ceiling.contestants(folder, SIDES["short256"])


if __name__ == "__main__":  # the seat of another interpreter
    seats.serve(Connection(int(sys.argv[1])), CONTESTANTS)
