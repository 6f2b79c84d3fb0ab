"""`kdcache advise` from the command line: of a recipe, of a cache, with the teacher again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.store.cache import Cache
from cache_tools.targets import codec, dense
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]
FEW = ("--tau", 0, "--tau", 0.001, "--k-max", 5, "--k-max", 30, "--levels", 127)


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advise") / "logits.npy"
    np.save(path, 3 * np.random.default_rng(0).standard_normal((700, 60)).astype("f2"))
    return path


def test_of_a_recipe(logits: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "advice.png"
    words = ("advise", "photos", "temperature=4.0", "--logits", logits, *FEW)
    facts = json.loads(kdcache(*words, "--json", "--out", out, "--error", 0.9).out)
    assert (facts["views"], facts["of"], facts["classes"]) == (400, 700, 60)
    assert (facts["loss"], facts["temperature"], facts["bytes"]) == ("kd", 4.0, "measured")
    own, *others = facts["settings"]
    assert own["own"]
    assert own["targets"]["temperatures"] == [1.0, 2.0]
    assert len(others) == 4 * 3
    good = [row for row in facts["settings"] if row["error"] <= facts["limit"]]
    assert facts["cheapest"] == min(good, key=lambda row: row["bytes_per_view"])
    assert out.read_bytes()[:4] == b"\x89PNG"
    text = kdcache(*words, "--error", 0.0).out
    assert "400 of 700 views, spread evenly; 60 classes; kd at T = 4" in text
    assert "no setting has an error of at most 0" in text
    assert "as it is" in text


def test_most_levels_have_a_picture_too(logits: Path, tmp_path: Path, kdcache: Command) -> None:
    out = tmp_path / "advice.png"
    few = ("--tau", 0.0, "--k-max", 5, "--levels", 7, "--levels", 254, "--tail", "bucket")
    done = kdcache("advise", "photos", "--logits", logits, "--rows", 20, *few, "--out", out)
    assert done.code == 0, done.err
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_the_teacher_of_a_cache_runs_again(
    digits_cache: Path, digits: Path, teacher: Path, kdcache: Command
) -> None:
    """Mixed views of ten classes, which the cache keeps: what is left is the codec's rounding."""
    from train.advise import sample

    words = ("advise", digits_cache, "--data", digits, "--recompute", 40, "--json")
    words = (*words, "--teacher", teacher)
    done = kdcache(*words, "--levels", 127)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    own = facts["settings"][0]
    assert (facts["views"], facts["of"], facts["bytes"]) == (40, 400, "estimated")
    assert own["own"]
    assert own["untrained"]["error"] < 0.15
    store = Cache.open(digits_cache)
    found = sample.of_cache(store, 40, str(digits), [str(teacher)], [], "cpu")
    assert found.label_BP.shape == (40, 2)
    stored = [store.read_view(view) for view in range(4)]
    for i, row in enumerate(found.row_B.tolist()):
        decoded = codec.decode(stored[i % 4], store.spec.targets, np.array([row]))
        p = dense.densify(decoded, store.spec.targets, 10)
        assert np.abs(p - dense.softmax(found.logits_BC[i : i + 1])).sum() < 0.05
    assert (found.lam_B < 1).any()
    assert (found.label_BP[:, 0] == store.table.label_N[found.row_B]).all()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "pass --logits FILE, or --recompute N"),
        (["--logits", "LOGITS", "--recompute", "5"], "one of them"),
        (["--logits", "LOGITS", "--out", "a.txt"], "--out a.txt is no PNG"),
        (["--logits", "LOGITS"], "has 60 classes, "),
        (["--logits", "LOGITS", "--data", "x"], "--data goes with --recompute N, not with --logit"),
        (["--logits", "LOGITS", "--teacher", "x"], "--teacher goes with --recompute N, not with"),
        (["--logits", "LOGITS", "--class-map", "x"], "--class-map goes with --recompute N, not"),
        (["--logits", "LOGITS", "--device", "cpu"], "--device goes with --recompute N, not with"),
        (["--recompute", "5", "--probabilities"], "--probabilities goes with --logits FILE, not"),
        (["--recompute", "5", "--rows", "400"], "--rows goes with --logits FILE, not with --recom"),
        (["loss=dkd", "--logits", "LOGITS", "--tail", "uniform", "--tail", "bucket"],
         "--tail bucket goes with loss=kd only, this student has loss=dkd. Leave it out."),
        (["mode=labels", "--logits", "LOGITS"], "mode=labels trains without soft targets"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    words: list[str], expected: str, logits: Path, digits_cache: Path, kdcache: Command
) -> None:
    found = kdcache("advise", digits_cache, *(str(logits) if w == "LOGITS" else w for w in words))
    assert (found.code, expected in found.err) == (2, True), found.err
    assert "Traceback" not in found.err


def test_bkd_has_no_temperature(logits: Path, kdcache: Command) -> None:
    words = ("--logits", logits, "--rows", 50, *FEW, "--json")
    facts = json.loads(kdcache("advise", "photos", "loss=bkd", "temperature=4.0", *words).out)
    assert (facts["loss"], facts["temperature"]) == ("bkd", 1.0)
    assert all(row["targets"]["temperatures"] == [1.0] for row in facts["settings"][1:])
    plain = json.loads(kdcache("advise", "photos", "loss=bkd", *words).out)
    assert facts["settings"] == plain["settings"]


def test_a_recipe_has_no_teacher_to_run(kdcache: Command) -> None:
    found = kdcache("advise", "photos", "--recompute", 5)
    assert (found.code, "Pass --logits FILE" in found.err) == (2, True)


def test_logits_that_are_not_finite_are_named(tmp_path: Path, kdcache: Command) -> None:
    values = np.zeros((300, 10), "f4")
    values[7, 3] = np.inf
    np.save(tmp_path / "l.npy", values)
    found = kdcache("advise", "photos", "--logits", tmp_path / "l.npy")
    assert found.code == 1
    assert "sample 7 of" in found.err
