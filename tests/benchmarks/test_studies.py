"""What the studies in `benchmarks` rest on: clean splits, files as they are, honest ratios."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import datasets, render, replay, validation
from benchmarks.controls import gain
from benchmarks.pairs import CPU, Pair, prepare
from benchmarks.replay import Turn
from cache_tools.data.open import open_images


def idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_fashion_is_the_training_set_and_then_the_test_set(tmp_path: Path) -> None:
    for part, begin in (("train", 0), ("t10k", 3)):
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(begin, begin + 3))
        pictures = np.broadcast_to(np.arange(begin, begin + 3)[:, None, None], (3, 28, 28))
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", pictures)
    pictures, labels = datasets.fashion(tmp_path)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert pictures.shape == (6, 28, 28)
    assert pictures[:, 13, 13].tolist() == labels.tolist()


def test_fashion_names_the_package_when_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="apt install dataset-fashion-mnist"):
        datasets.fashion(tmp_path)


def test_no_picture_is_in_two_splits_but_the_teachers_transfer_set(tmp_path: Path) -> None:
    sizes = datasets.write("digits", tmp_path / "digits", 100)
    assert sizes == {"train": 100, "teacher": 1000, "choose": 300, "validation": 497}
    names = {
        split: set(open_images(str(tmp_path / "digits" / f"digits-{split}-*.tar"), "train").names)
        for split in sizes
    }
    assert names["train"] < names["teacher"]
    apart = [names[split] for split in ("teacher", "choose", "validation")]
    assert len(set.union(*apart)) == sum(map(len, apart)) == 1797


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm's data set leaves files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timm_and_kdcache_eval_predict_the_same_classes(tmp_path: Path) -> None:
    """`benchmarks.validation` with small networks: 24 photographs, a larger size for tests."""
    for number, data in enumerate(render.pictures("imagenet")[:24]):
        (tmp_path / f"pictures/{number}").mkdir(parents=True)
        (tmp_path / f"pictures/{number}/{number}.jpg").write_bytes(data)
    small = {"test_resnet": validation.A1, "test_byobnet": validation.SQUASHED}
    found = validation.compare(tmp_path / "pictures", tmp_path, small)
    assert [row["size"] for row in found.values()] == [224, 288, 256]
    assert all(row["same"] == row["pictures"] == 24 for row in found.values())
    assert all(row["classes"] > 3 for row in found.values())


def test_a_gain_is_paired_by_seed() -> None:
    found = gain([2.0, 12.0, 23.0], [1.0, 10.0, 20.0])
    assert found["mean"] == pytest.approx(2.0)
    assert found["error"] == pytest.approx(1 / 3**0.5)


def test_ratios_are_taken_within_a_turn_and_the_limit_is_that_of_bare_costs() -> None:
    noise = (1.0, 3.0, 10.0)  # a machine that becomes slower and slower
    each = {"labels": 1.0, "cached": 1.02, "online": 1.53}
    turns = {name: [Turn(wall=n * t, cpu=t, wait=0.1) for n in noise] for name, t in each.items()}
    alone = {"student": 2.0, "labels": 1.98, "teacher": 2.0}
    alone |= {"loss": 0.1, "cross-entropy": 0.05, "lookup": 0.01}
    count = SimpleNamespace(count_B=np.array([3, 5]))
    store = SimpleNamespace(read_view=lambda _: count)
    bench: Any = SimpleNamespace(
        pair=CPU[0], device=torch.device("cpu"), inputs=SimpleNamespace(store=store)
    )
    found = replay.summary(cast(replay.Bench, bench), turns, alone)
    for clock in ("wall", "cpu"):
        assert found["cached / labels"][clock]["median"] == pytest.approx(1 / 1.02)
        assert found["cached / online"][clock]["most"] == pytest.approx(1.5)
    assert found["limit of cached / online"] == 2.0
    assert found["cached / labels, bare"] == pytest.approx(0.99)
    assert found["reached"] == pytest.approx(0.75)
    assert found["share of a step"]["lookup"] == pytest.approx(0.01 / (1.02 * CPU[0].batch))
    assert found["bars"] == {"cached / labels at least 0.98, cpu time": True}
    assert found["kept classes"] == 4.0


def test_replay_is_measured_in_the_trainer_itself(tmp_path: Path) -> None:
    pair = Pair("test_efficientnet", "test_resnet", 32, batch=8, steps=34, warmup=2, short_side=48)
    bench = prepare(pair, torch.device("cpu"), tmp_path)
    seconds = {name: replay.turn(bench, name) for name in replay.MODES}
    assert all(one.wall > 0 and one.cpu > 0 and 0 <= one.wait < 1 for one in seconds.values())
