"""Facts of a cache in its report, against direct computation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_tools.report import cache_facts
from cache_tools.store.cache import Cache
from cache_tools.targets import codec
from cache_tools.views import draw as views
from tests.helpers.outcome import Outcome
from tests.helpers.reports import subjects_of

Command = Callable[..., Outcome]


def test_the_facts_of_a_cache_against_its_targets(kdcache: Command, digits_cache: Path) -> None:
    facts = subjects_of(kdcache("report", digits_cache, "--json"))[0]
    store = Cache.open(digits_cache)
    first, sure, label = [], [], []
    for view in range(store.num_views):
        targets = codec.decode(store.read_view(view), store.spec.targets)
        at = targets.probability_BK.argmax(1)
        first.append(targets.index_BK[np.arange(100), at])
        sure.append(targets.probability_BK.max(1))
        mixes = [
            views.mix(store.spec.views, store.table.id_N[b : b + store.spec.window], view)
            for b in range(0, 100, store.spec.window)
        ]
        partner = np.concatenate([i * store.spec.window + m.partner_B for i, m in enumerate(mixes)])
        lam = np.concatenate([m.lam_B for m in mixes]) / views.LAMBDA_SCALE
        own = store.table.label_N
        label.append(np.where(lam >= 0.5, own, own[partner]))
    hit = np.stack(first) == np.stack(label)
    calibration = facts["calibration"]
    assert facts["sampled"] == {"views": 400, "of": 400}
    assert calibration["top1"] == pytest.approx(100 * hit.mean())
    assert calibration["confidence"] == pytest.approx(100 * np.stack(sure).mean())
    assert sum(one["views"] for one in calibration["bins"]) == 400
    assert facts["by_view"]["top1"] == pytest.approx((100 * hit.mean(1)).tolist())
    assert not facts["by_view"]["all_views"]  # the records of mixed views say nothing of it
    for name in ("entropy", "kept_mass", "kept_classes"):
        assert sum(facts[name]["counts"]) == 400
    groups = facts["by_strength"]
    assert set(groups) == {"crop_area", "turn_degrees", "own_share"}
    assert all(sum(g["views"] for g in one) == 400 for one in groups.values())
    assert groups["turn_degrees"][-1]["mean"] < 23
    right = sum(g["views"] * g["top1"] for g in groups["crop_area"]) / 400
    assert right == pytest.approx(calibration["top1"])


def test_a_sample_is_reported_as_a_sample(
    kdcache: Command, digits_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    facts = subjects_of(kdcache("report", digits_cache, "--limit", 60, "--out", out, "--json"))[0]
    assert facts["sampled"] == {"views": 60, "of": 400}
    text = out.read_text()
    assert "A sample: 60 of 400 stored views" in text
    assert "All classes of every view are kept: only rounding is lost." in text
    assert "Of every view 10 of 10 classes are kept." in text


def test_groups_of_a_value_that_hardly_varies() -> None:
    values = np.array([1.0] * 95 + [0.5] * 5)
    groups = cache_facts._groups(values, np.arange(100) < 95)
    assert sum(group["views"] for group in groups) == 100


def test_few_views_are_no_certainty() -> None:
    assert cache_facts._top1(np.ones(4, bool))["error"] > 15
    assert cache_facts._top1(np.arange(1000) < 900)["error"] == pytest.approx(0.95, abs=0.01)
    assert len(cache_facts._groups(np.arange(60.0), np.ones(60, bool))) == 2
