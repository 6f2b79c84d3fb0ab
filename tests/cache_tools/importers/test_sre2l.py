"""Batches of SRe2L, mixed or not, become views of a cache."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.store import view_params
from cache_tools.targets import statistics
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import Sizes
from tests.helpers.imported_caches import opened, stored_probabilities
from tests.helpers.outcome import Outcome

Command = Callable[..., Outcome]


@pytest.mark.parametrize("mix", ["", "mixup", "cutmix"])
def test_sre2ls_batches_become_views(
    mix: str, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    drawn = writers.sre2l(tmp_path / "soft", sizes, mix)
    done = import_("fkd", tmp_path / "soft", tmp_path / "c.zarr", "--size", 32, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["views"] == 2
    store, _ = opened(tmp_path / "c.zarr", folder)
    keys = {name.rpartition("/")[2]: name for name in sizes}
    for view in range(2):
        stored = view_params._imported(store, view, np.arange(len(sizes)))
        for row, key in enumerate(store.table.keys):
            expected = drawn[keys[key], view]
            sides = [expected, drawn[str(expected["partner"]), view]][: 1 + bool(mix)]
            for side, of in enumerate(sides):
                assert stored.box_BP4[row, side].tolist() == of["box"].tolist()
                assert stored.flip_BP[row, side] == of["flip"]
            if mix:
                assert keys[store.table.keys[stored.partner_B[row]]] == expected["partner"]
            own = expected["lam"] if mix == "mixup" else 1
            assert stored.weight_B[row] == round(own * 65536)
            assert stored.cut_B4[row].tolist() == ([3, 5, 17, 25] if mix == "cutmix" else [0] * 4)
            kept, _ = stored_probabilities(store, key, view)
            softmax = np.exp(expected["logits"]) / np.exp(expected["logits"]).sum()
            assert all(abs(kept.get(c, 0.0) - p) < 0.02 for c, p in enumerate(softmax))
    assert kdcache("verify", tmp_path / "c.zarr", "--data", folder / "photos").code == 0


def test_sre2ls_files_of_another_order_or_shape_are_refused(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_ENOUGH", 5)
    writers.sre2l(tmp_path / "seed", sizes, "", seed=43)
    refused = import_("fkd", tmp_path / "seed", tmp_path / "c.zarr", "--size", 32)
    assert (refused.code, "of another picture" in refused.err) == (1, True)
    for name in sizes:  # all of one size, as distilled images are
        path = tmp_path / "equal" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (len(name), 0, 0)).save(path)
    equal = dict.fromkeys(sizes, (64, 64))
    writers.sre2l(tmp_path / "equal-seed", equal, "", seed=43)
    data = ("--data", tmp_path / "equal", "--size", 32)
    refused = import_("fkd", tmp_path / "equal-seed", tmp_path / "e.zarr", *data)
    assert (refused.code, "--fkd-seed" in refused.err) == (1, True), refused.err
    monkeypatch.undo()
    by_seed = import_("fkd", tmp_path / "equal-seed", tmp_path / "e.zarr", *data, "--fkd-seed", 43)
    assert by_seed.code == 0, by_seed.err
    writers.sre2l(tmp_path / "short", sizes, "cutmix")
    path = tmp_path / "short" / "epoch_1" / "batch_2.tar"
    config = torch.load(path, weights_only=False)
    for broken, message in (
        ([*config[:5], config[5][:1]], "logits"),
        ([*config[:5], config[5].float().softmax(1)], "no logits"),
        ([*config[:2], torch.zeros_like(config[2]), *config[3:]], "permutation"),
        (config[:5], "is no batch of SRe2L"),
    ):
        torch.save(broken, path)
        refused = import_("fkd", tmp_path / "short", tmp_path / "d.zarr", "--size", 32)
        assert (refused.code, message in refused.err) == (1, True), refused.err
