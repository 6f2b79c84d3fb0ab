"""What `kdcache info` prints: one screen, every fact, and JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cache_tools.spec.views import ViewSpec
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


def test_a_screen_has_the_keys_that_differ_from_their_defaults(
    kdcache: Command, digits_cache: Path, digits: Path
) -> None:
    shown = kdcache("info", digits_cache).out
    store = Cache.open(digits_cache)
    assert len(shown.splitlines()) <= 20
    assert all(len(line) <= 100 for line in shown.splitlines()[1:])
    assert shown.startswith(f"{digits_cache}: complete, 4 of 4 parts, 4 views of 100 images\n")
    assert f"\nfingerprint  {store.spec.fingerprint}\n" in shown
    assert f"\ncontent id   {store.content_id()}\n" in shown
    assert f"images in {digits}" in " ".join(shown.split())
    assert "local:test_resnet, sha256:" in shown
    words = shown.split()
    assert {"mixup=0.5", "k_min=10", "hflip=0.0"} <= {*words}
    changed = {word.partition("=")[0] for word in words if "=" in word}
    default = {k for k, v in asdict(ViewSpec(32)).items() if getattr(store.spec.views, k) == v}
    assert "center_crop" in default
    assert not changed & default


def test_all_prints_every_fact_and_json_has_the_same(kdcache: Command, digits_cache: Path) -> None:
    facts = json.loads(kdcache("info", digits_cache, "--json").out)
    lines = kdcache("info", digits_cache, "--all").out.splitlines()
    found = dict(line.partition(" ")[::2] for line in lines)
    for table in ("dataset", "teacher", "views", "targets"):
        assert {f"spec.{table}.{key}" for key in facts["spec"][table]} <= found.keys()
    assert found["spec.views.center_crop"].strip() == "0.0"
    assert found["teacher.weights_sha256"].strip() == facts["teacher"]["weights_sha256"]
    assert found["spec.dataset.labels"].strip() == "true"


def test_an_unfinished_cache(kdcache: Command, mutable_cache: Path) -> None:
    for part in Cache.open(mutable_cache).parts():
        if part != Part(0, 0):
            (mutable_cache / part.record).unlink()
    assert ": incomplete, 1 of " in kdcache("info", mutable_cache).out
    (mutable_cache / Part(0, 0).record).unlink()
    shown = kdcache("info", mutable_cache).out
    assert "\nsize         0 bytes\n" in shown
    assert "None" not in shown
