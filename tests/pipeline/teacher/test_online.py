"""Cached equals online: the teacher in the loop says what the cache says."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.targets import codec
from pipeline import recipe as recipes
from pipeline.run import run as make
from pipeline.teacher.online import online
from train import recipe as training
from train import run_dir
from train.data.device_batch import online_targets
from train.data.inputs import Inputs, open_inputs
from train.data.loader import Batch
from train.data.stored_targets import StoredTargets
from train.trainer import loop

FAST = ["epochs=2", "views_per_epoch=2", "batch_size=40", "model_ema_decay=0.0"]
MIXED = ["num_views=4", "views.mixup=0.5", "views.cutmix=1.0", "targets.temperatures=[1.0, 4.0]"]


def test_the_curves_agree_to_rounding(
    digits: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the teacher's exact words of stage 1 in place of codes, batches of 32 against 40."""
    store = make(recipes.load("digits", MIXED), str(digits), str(teacher), tmp_path / "c", "cpu")
    ask = online(store, str(teacher), torch.device("cpu"))
    inputs = open_inputs(tmp_path / "c", None)
    curves = {}
    for mode in ("online", "kd"):
        recipe = training.load("digits", [*FAST, f"mode={mode}"])
        out = tmp_path / mode
        run_dir.init_run(out, recipe, inputs, fresh=False)
        if mode == "kd":
            monkeypatch.setattr(StoredTargets, "_targets", exact_targets(store, inputs, ask))
        loop.train(recipe, inputs, out, torch.device("cpu"), ask if mode == "online" else None)
        curves[mode] = [json.loads(x)["loss"] for x in (out / "log.jsonl").read_text().splitlines()]
    assert curves["kd"] == pytest.approx(curves["online"], rel=1e-4)


def exact_targets(
    store: object, inputs: Inputs, ask: object
) -> Callable[..., codec.DecodedTargets]:
    """What the teacher says of every view, in the table's order, not rounded."""
    said = {view: words(store, inputs, ask, view) for view in range(4)}

    def targets(self, loaded, slot_B, row_B):  # type: ignore[no-untyped-def]
        views = [one.number for one in loaded]
        rows = [(views[s], r) for s, r in zip(slot_B.tolist(), row_B.tolist(), strict=True)]
        return codec.DecodedTargets(*(np.stack([said[v][i][r] for v, r in rows]) for i in range(5)))

    return targets


def words(store, inputs, ask, view: int) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    batches = list(_in_order(store, inputs, view))
    parts = [online_targets(ask, batch, store.spec) for batch in batches]
    none = np.empty((100, 0), "f4")
    names = ("index", "probability", "tail")
    return [*(np.concatenate([getattr(p, n).numpy() for p in parts]) for n in names), none, none]


def _in_order(store, inputs, view: int) -> Iterator[Batch]:  # type: ignore[no-untyped-def]
    """Batches of 32 rows of the table, as stage 1 has them."""
    from cache_tools.render import view as render
    from cache_tools.views import draw

    table, spec = store.table, store.spec.views
    params = draw.draw(spec, table.id_N, table.height_N, table.width_N, view)
    pixels = np.empty((100, 32, 32, 3), "u1")
    for row in range(100):
        data = inputs.images.read(row)
        render.render_views(data, table.keys[row], spec, [(params, row, pixels[row])])
    mix = draw.mix(spec, table.id_N, view)
    none = codec.DecodedTargets(*(np.empty((0, 0)) for _ in range(5)))
    for begin in range(0, 100, 32):
        at = slice(begin, begin + 32)
        pictures = np.concatenate([pixels[at], pixels[mix.partner_B[at]]])
        count = len(pictures) // 2
        label, other = np.zeros(count, "i8"), count + np.arange(count)
        lam = mix.lam_B[at].astype("f4")
        yield Batch(pictures, other, lam, mix.cut_B4[at], none, label, label, (1.0,), 10)


def test_the_command_needs_the_right_teacher(
    digits_cache: Path, teacher: Path, tmp_path: Path, kdcache: Callable[..., object]
) -> None:
    command = (
        "train",
        "digits",
        "--cache",
        digits_cache,
        "--out",
        tmp_path / "r",
        *FAST,
        "mode=online",
    )
    assert "Pass --teacher with a folder" in kdcache(*command).err
    said = kdcache(*command, "--teacher", teacher, "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert result["mode"] == "online"
    cached = kdcache(*command[:-1], "--fresh", "--json")
    assert result["loss"] == pytest.approx(json.loads(cached.out)["loss"], rel=0.02)


def test_a_teacher_of_its_own_size_is_refused(digits_cache: Path, teacher: Path) -> None:
    from cache_tools.errors import UsageError
    from cache_tools.store.cache import Cache

    store = Cache.open(digits_cache)
    store.spec = replace(store.spec, views=replace(store.spec.views, teacher_size=64))
    with pytest.raises(UsageError, match="64 px, the student's have 32"):
        online(store, str(teacher), torch.device("cpu"))
