"""Views of ml-dr, augmented and mixed, become a cache; what it does not write is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.data import match
from cache_tools.data.open import open_images
from cache_tools.importers import base
from cache_tools.render import view as render
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import CLASSES, Sizes
from tests.helpers.imported_caches import opened, stored_probabilities, trains
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.schedule import Schedule

Command = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("by", "mixed"),
    [
        ("torch", True),
        ("joblib", False),
        pytest.param("torch", False, marks=pytest.mark.slow),
        pytest.param("joblib", True, marks=pytest.mark.slow),
    ],
)
def test_ml_dr_views_come_along(
    by: str, mixed: bool, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command,
    kdcache: Command,
) -> None:  # fmt: skip
    files = writers.ml_dr(tmp_path / "dr", sizes, views=4, mixed=mixed, by=by)
    done = import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr")
    assert done.code == 0, done.err
    store, _ = opened(tmp_path / "c.zarr", folder)
    names = list(sizes)
    for view in range(4):
        stored = store.read_params(Part(view, 0))
        for i, name in enumerate(names):
            key = name.rpartition("/")[2]
            row, said = store.table.keys.index(key), files[i][view]
            kept, _ = stored_probabilities(store, key, view)
            assert kept.keys() == set(said["prob"][1])
            assert max(kept, key=lambda c: kept[c]) == writers.label_of(name)
            partner, *params = said["params"] if mixed else [None, *said["params"]]
            own = [p if partner is None else p[0] for p in params[:4]]
            assert stored.box_BP4[row, 0].tolist() == list(own[0])
            assert bool(stored.flip_BP[row, 0]) == own[1]
            assert stored.codes_BPL[row, 0].any() <= (own[2] is not None)
            if partner is not None:
                assert store.table.keys[stored.partner_B[row]] == names[partner].split("/")[1]
                assert stored.box_BP4[row, 1].tolist() == list(params[0][1])
    if by == "torch":
        assert kdcache("verify", tmp_path / "c.zarr", "--data", folder / "photos").code == 0
        assert trains(tmp_path / "c.zarr", folder, tmp_path, kdcache).code == 0


def theirs(picture: Image.Image, own: list) -> torch.Tensor:
    """One picture as ml-dr's student sees it before mixing, [3, 32, 32] of 0..1."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F
    from torchvision.transforms.autoaugment import _apply_op

    from cache_tools.importers.torchvision_ops import NAMES

    box, flip, operations, erased = own
    picture = F.resized_crop(picture, *box, [32, 32], InterpolationMode.BILINEAR)
    tensor = F.pil_to_tensor(F.hflip(picture) if flip else picture)
    for number, magnitude in operations or ():
        tensor = _apply_op(tensor, NAMES[number], magnitude, InterpolationMode.NEAREST, None)
    tensor = tensor.float() / 255
    if erased is not None and erased[0] != -1:
        top, left, height, width = erased
        tensor[:, top : top + height, left : left + width] = 0
    return tensor


def test_ml_dr_views_are_theirs_within_rounding(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    """Replay, mixed as for the network, against torchvision's operations on tensors."""
    from cache_tools.render import mixing

    files = writers.ml_dr(tmp_path / "dr", sizes, views=4)
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr").code == 0
    store, images = opened(tmp_path / "c.zarr", folder)
    schedule = Schedule(store, 4, 48, seed=0)
    plan, names = schedule.plan(0), list(sizes)
    batch = next(iter(create_loader.native(store, images, schedule, 1).epoch(0)))
    assert batch.partner is not None
    pixels, partner = (p.transpose(0, 3, 1, 2).astype("f4") for p in (batch.pixels, batch.partner))
    side = np.arange(32)
    mixed = mixing.mix(pixels, partner, batch.lam_B, batch.cut_B4, side, batch.outside_B)
    off = []
    for at, (row, slot) in enumerate(zip(plan.row_M, plan.slot_M, strict=True)):
        name = images.names[row]
        other, *params = files[names.index(name)][slot]["params"]
        sides = [[p if other is None else p[s] for p in params[:4]] for s in range(2)]
        x, x2 = (
            theirs(Image.open(folder / f"photos/{n}.JPEG").convert("RGB"), own)
            for n, own in zip((name, names[other or 0]), sides, strict=True)
        )
        lam, cut = params[4:]
        share = 1.0
        if lam is not None:
            x, share = lam * x + (1 - lam) * x2, lam
        if cut is not None:
            _, top, left, bottom, right = (int(v) for v in cut)
            x[:, top:bottom, left:right] = x2[:, top:bottom, left:right]
            share *= 1 - (bottom - top) * (right - left) / 32**2
        assert abs(batch.lam_B[at] / 65536 - share) < 1e-4
        off.append(np.abs(mixed[at] - 255 * x.numpy()))
    assert np.mean(off) < 0.3
    assert np.quantile(off, 0.99) <= 3


def endless() -> list:
    """A list that is small in a file and whose `repr` has 2^40 numbers."""
    value: list = [0, 0]
    for _ in range(39):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[1][0]["params"].pop(), "parameters for"),
        (lambda v: v[1][0]["params"].__setitem__(1, [(0, 0, 999, 9)] * 2), "leaves"),
        (lambda v: v[1][0]["params"].__setitem__(0, 99), "partner is image 99"),
        (lambda v: v[1][0]["params"].__setitem__(3, [[(77, 1.0)]] * 2), "no operation 77"),
        (lambda v: v[1][0]["params"].__setitem__(3, [[(6, 1e9)]] * 2), "no operation 6"),
        (lambda v: v[1][0]["params"].__setitem__(2, [1, 0]), "flip is 1"),
        (lambda v: v[1][0]["params"].__setitem__(4, [(0, 0, 99, 9)] * 2), "erased box that leaves"),
        (lambda v: v[1].pop(), "views, the first has"),
        (lambda v: v[1][0].pop("prob"), "no \\(number"),
        (lambda v: v[1][0]["prob"][0].pop(), "the first file has"),
        (lambda v: v[1][0]["prob"][0].__setitem__(0, float("nan")), "probabilities"),
        (lambda v: v[1][0]["prob"][1].__setitem__(0, 99), "outside of 0..2"),
        (lambda v: v.__setitem__(0, 3), "is of image 3"),
        (lambda v: v.__setitem__(0, endless()), "is of image"),
        (lambda v: v[1][0]["params"].__setitem__(0, endless()), "partner is image"),
        (lambda v: v[1][0]["params"].__setitem__(1, endless()), "for 4 numbers"),
        (lambda v: v[1][0]["params"].__setitem__(2, endless()), "flip is"),
        (lambda v: v[1][0].__setitem__("prob", (endless(), [0, 1])), "probabilities"),
        (lambda v: v[1][0].__setitem__("prob", 3), "not what ml-dr writes"),
    ],
)
def test_files_that_ml_dr_does_not_write_are_refused(
    change: Callable[[list], object], message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    import re

    writers.ml_dr(tmp_path / "dr", sizes)
    value = list(torch.load(tmp_path / "dr/5.pth.tar", weights_only=False))
    change(value)
    torch.save(tuple(value), tmp_path / "dr/5.pth.tar", pickle_protocol=4)
    done = import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr")
    assert done.code == 1
    assert re.search(message, " ".join(done.err.split()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__("random_crop", {"size": 32, "padding": 4}), "not of others"),
        (lambda a: a.pop("random_resized_crop"), "not of others"),
        (lambda a: a["random_resized_crop"].__setitem__("size", 10**9), "cannot be rendered"),
        (lambda a: a["random_resized_crop"].__setitem__("interpolation", "bicubic"), "bilinear"),
        (lambda a: a["rand_augment"].__setitem__("num_ops", 99), "cannot be rendered"),
        (lambda a: a["rand_augment"].__setitem__("enable", False), "parameters for"),
        (lambda a: a.clear(), "not of others"),
        (lambda a: a.__setitem__(7, {}), "not of others"),
        (lambda a: a["random_resized_crop"].__setitem__("size", endless()), "cannot be rendered"),
        (lambda a: a["random_resized_crop"].__setitem__("interpolation", endless()), "bilinear"),
    ],
)
def test_configurations_that_are_not_read_are_refused(
    change: Callable[[dict], object], message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.ml_dr(tmp_path / "dr", sizes, views=1)
    path = tmp_path / "dr/config.pth.tar"
    config = torch.load(path, weights_only=False)
    change(config["reinforce"]["image_augmentation"])
    torch.save(config, path)
    done = import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr")
    assert (done.code, message in " ".join(done.err.split())) == (1, True), done.err
    path.unlink()
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr").code == 1


def test_ml_dr_counts_its_images(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    writers.ml_dr(tmp_path / "dr", sizes)
    assert kdcache("shard", folder / "photos", tmp_path / "tars").code == 0
    of_tars = "--data", tmp_path / "tars"
    refused = import_("ml-dr", tmp_path / "dr", tmp_path / "a.zarr", *of_tars)
    assert refused.code == 2
    assert "--dataset-index" in refused.err
    lines = "".join(f"{name}.JPEG\n" for name in sizes)
    (tmp_path / "order.txt").write_text(lines)
    order = "--dataset-index", tmp_path / "order.txt"
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "a.zarr", *of_tars, *order).code == 0
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "b.zarr").code == 0
    a, b = (Cache.open(tmp_path / f"{x}.zarr") for x in "ab")
    for view in range(3):
        assert a.read_params(Part(view, 0)).equals(b.read_params(Part(view, 0)))
    (tmp_path / "order.txt").write_text(lines.rpartition("n02/")[0])
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "d.zarr", *of_tars, *order).code == 1
    (tmp_path / "dr/11.pth.tar").unlink()
    assert "11.pth.tar is missing" in " ".join(
        import_("ml-dr", tmp_path / "dr", tmp_path / "d.zarr").err.split()
    )


@pytest.mark.slow
def test_partners_stand_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdcache: Command
) -> None:
    picture = tmp_path / "one"
    writers.pictures(picture, count=1)
    data, sizes = (picture / "n00/n00_0.JPEG").read_bytes(), {}
    with Image.open(picture / "n00/n00_0.JPEG") as opened_:
        size = opened_.size[::-1]
    for i in range(1100):
        name = f"n0{i % CLASSES}/n0{i % CLASSES}_{i}"
        path = tmp_path / f"photos/{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sizes[name] = size
    files = writers.ml_dr(tmp_path / "dr", sizes := dict(sorted(sizes.items())), views=1)
    monkeypatch.setattr(base, "BLOCK", 1024)
    monkeypatch.setattr(base, "_MEMORY", 10_000)  # as of a million pictures
    out = ("--data", tmp_path / "photos", "--out", tmp_path / "c")
    assert kdcache("import", "ml-dr", tmp_path / "dr", *out).code == 0
    store = Cache.open(tmp_path / "c")
    assert store.spec.num_blocks == 2
    names = [name.split("/")[1] for name in sizes]
    rows = np.array([store.table.keys.index(key) for key in names])
    mix = view_params.mixing(store, 0)
    partners = [store.table.keys[row] for row in mix.partner_B[rows]]
    assert partners == [names[said[0]["params"][0]] for said in files]
    backwards = view_params.parameters(store, 0, rows, partner=True).box_B4
    assert backwards.tolist() == [list(said[0]["params"][1][1]) for said in files]
    images = match.match(
        store.table,
        store.spec.dataset,
        open_images(str(tmp_path / "photos"), "train"),
    )
    replay = create_loader.native(store, images, Schedule(store, 1, 50, seed=0), 1)
    batch = next(iter(replay.epoch(0)))
    assert batch.partner is not None
    plan = Schedule(store, 1, 50, seed=0).plan(0)
    row = int(plan.row_M[7])
    own, other = (np.empty((32, 32, 3), np.uint8) for _ in range(2))
    for side, out_ in enumerate((own, other)):
        params = view_params.parameters(store, 0, np.array([row]), side)
        render.render_views(data, "x", store.spec.views, [(params, 0, out_)])
    assert np.array_equal(batch.pixels[7], own)
    assert np.array_equal(batch.partner[7], other)
