"""What is counted of a network's answers, against figures worked out by hand or by timm."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import RealLabelsImagenet

from cache_tools.data.images import ImageDataset
from cache_tools.errors import CacheMismatch, TeacherError, UsageError
from cache_tools.spec.dataset import NO_LABEL
from train.data.device_batch import InputTransform
from train.evaluate import metrics, real_labels
from train.evaluate.accuracy import Network
from train.evaluate.crops import TimmFrame
from train.evaluate.metrics import Calibration, Tally

IMAGENET = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(4)]
REAL = [[], [0, 3], [5], [2]]


def pictures(names: list[str]) -> ImageDataset:
    none = np.zeros(len(names), "i8")
    return ImageDataset("somewhere", [], names, none, none, none, none + NO_LABEL)


def test_calibration_error_by_hand() -> None:
    """Bins are 1/15 wide: 0.95 and 0.99 share the last; 0.5 and 0.3 have one each."""
    calibration = Calibration()
    calibration.add(torch.tensor([0.95, 0.5]), torch.tensor([True, False]))
    calibration.add(torch.tensor([0.99, 0.3]), torch.tensor([False, True]))
    by_hand = (abs(1 - 0.95 - 0.99) + abs(0 - 0.5) + abs(1 - 0.3)) / 4
    assert calibration.error == pytest.approx(100 * by_hand, abs=1e-4)


def test_a_bin_is_closed_above() -> None:
    """1/3 is the upper end of the fifth bin: with 0.3 it cancels out, with 0.34 it does not."""
    for other, expected in ((0.3, (1 - 1 / 3 - 0.3) / 2), (0.34, (2 / 3 + 0.34) / 2)):
        calibration = Calibration()
        calibration.add(torch.tensor([1 / 3, other], dtype=torch.double), torch.tensor([1, 0]))
        assert calibration.error == pytest.approx(100 * expected)
    calibration = Calibration()
    calibration.add(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    assert calibration.error == 0


def test_a_tally_of_nothing_has_no_means() -> None:
    scores = Tally().scores()
    assert scores.images == 0
    assert {v for k, v in vars(scores).items() if k != "images"} == {None}


def test_accuracy_over_batches_of_different_size() -> None:
    logits = torch.eye(10)[[3, 4, 5]] + 0.01 * torch.arange(10)
    tally = Tally()
    tally.add(logits[:2], torch.tensor([3, 9]))
    tally.add(logits[2:], torch.tensor([0]))
    scores = tally.scores()
    assert (scores.images, scores.top1) == (3, pytest.approx(100 / 3))
    assert scores.top5 == pytest.approx(200 / 3)  # 9 comes second for 4; 0 comes last for 5


def test_kl_and_its_direction() -> None:
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    by_hand = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert float(metrics.kl_divergence(p.log(), q.log())) == pytest.approx(by_hand)


@pytest.mark.parametrize("suffix", ["", ".JPEG"])
def test_real_accuracy_is_timms(tmp_path: Path, suffix: str) -> None:
    """The same file, logits and pictures; those with no label are left out by both."""
    file = tmp_path / "real.json"
    file.write_text(json.dumps(REAL))
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    theirs = RealLabelsImagenet([f"val/{name}.JPEG" for name in IMAGENET], str(file))
    theirs.add_result(logits)
    by_name = {name + suffix: labels for name, labels in zip(IMAGENET, REAL, strict=True)}
    (tmp_path / "named.json").write_text(json.dumps(by_name))
    for source in (file, tmp_path / "named.json"):
        allowed = real_labels.of(
            real_labels.load(str(source)), pictures([f"val/{n}" for n in IMAGENET]), 10
        )
        tally = Tally()
        tally.add_real(logits, allowed)
        scores = tally.scores()
        assert scores.real_images == 3
        assert scores.real_top1 == pytest.approx(theirs.get_accuracy(1))
        assert scores.real_top5 == pytest.approx(theirs.get_accuracy(5))


def test_pictures_are_found_by_name_in_any_order_and_as_the_hub_names_them() -> None:
    labels = dict(zip(IMAGENET, map(frozenset, REAL), strict=True))
    some = pictures([f"{IMAGENET[2]}_n01751748", IMAGENET[1]])
    assert real_labels.of(labels, some, 10) == [{5}, {0, 3}]
    assert real_labels.of(labels, pictures(["0a1b2c"]), 10) is None


def test_the_published_labels_come_with_timm() -> None:
    labels = real_labels.load("timm")
    assert len(labels) == 50_000
    assert sum(not classes for classes in labels.values()) == 3_163
    assert labels["ILSVRC2012_val_00000002"] == {970, 795}


def test_real_labels_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    labels = dict(zip(IMAGENET, map(frozenset, REAL), strict=True))
    with pytest.raises(CacheMismatch, match=r"lack 1 of the 2 images .*ILSVRC2012_val_00000009"):
        real_labels.of(labels, pictures([IMAGENET[0], "ILSVRC2012_val_00000009"]), 10)
    with pytest.raises(UsageError, match="contain class 5, the networks have 5"):
        real_labels.of(labels, pictures(IMAGENET), 5)
    for text in ("[1, 2]", '{"a": [true]}', '{"a": [-1]}', '"x"', "[[1.5]]"):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(UsageError, match="contains no ReaL labels"):
            real_labels.load(str(tmp_path / "odd.json"))
    for text in ("{", "[" * 100_000):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(UsageError, match="cannot be read"):
            real_labels.load(str(tmp_path / "odd.json"))
    with pytest.raises(UsageError, match=r"No such file.*--real timm"):
        real_labels.load(str(tmp_path / "none.json"))


def test_a_network_that_ends_in_a_softmax_is_refused() -> None:
    feed = InputTransform(torch.device("cpu"), "fp32", (0.5,) * 3, (0.5,) * 3)
    frame = TimmFrame(4, 1.0, "bilinear", "center", (0.5,) * 3)
    for last, refused in ((torch.nn.Softmax(1), True), (torch.nn.LogSoftmax(1), False)):
        model = torch.nn.Sequential(torch.nn.Flatten(), last)
        network = Network("student", model, feed, frame, 48)
        expected = pytest.raises(TeacherError, match="the student are probabilities")
        with expected if refused else nullcontext():
            network.logits(np.arange(96, dtype="u1").reshape(2, 4, 4, 3))
