"""What TinyViT, FKD and ml-dr stored becomes a cache: their numbers, their views, no guesses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools.data import match
from cache_tools.data.images import ImageDataset
from cache_tools.data.open import open_images
from cache_tools.errors import CacheDamaged, UsageError
from cache_tools.importers import base
from cache_tools.render import view as render
from cache_tools.store import view_params
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from cache_tools.targets import codec, statistics
from tests.helpers import foreign_files as writers
from tests.helpers.foreign_files import CLASSES, Sizes
from tests.helpers.outcome import Outcome
from train.data import create_loader
from train.data.schedule import Schedule

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def sizes(folder: Path) -> Sizes:
    return writers.pictures(folder / "photos")


@pytest.fixture
def import_(folder: Path, sizes: Sizes, kdcache: Command) -> Callable[..., Outcome]:
    def call(kind: str, source: Path, out: Path, *more: object) -> Outcome:
        data = () if "--data" in more else ("--data", folder / "photos")
        return kdcache("import", kind, source, *data, "--out", out, *more)

    return call


def opened(out: Path, folder: Path) -> tuple[Cache, ImageDataset]:
    store = Cache.open(out)
    images = open_images(str(folder / "photos"), "train")
    return store, match.match(store.table, store.spec.dataset, images)


def stored_probabilities(store: Cache, key: str, view: int) -> tuple[dict[int, float], float]:
    """Classes with probabilities and the mass of all others, as the cache has them."""
    row = store.table.keys.index(key)
    targets = codec.decode(store.read(Part(view, 0))[0], store.spec.targets, np.array([row]))
    kept = targets.probability_BK[0] > 0
    pairs = zip(targets.index_BK[0][kept].tolist(), targets.probability_BK[0][kept], strict=True)
    return dict(pairs), float(targets.tail_BT[0, 0])


def trains(out: Path, folder: Path, tmp_path: Path, kdcache: Command) -> Outcome:
    """Two steps of a student, as its users take them."""
    return kdcache(
        "train", "digits", "--cache", out, "--data", folder / "photos", "--out", tmp_path / "run",
        "epochs=1", "views_per_epoch=2", "batch_size=12", "temperature=1.0", "threads=1",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["f4", pytest.param("f2", marks=pytest.mark.slow)])
def test_fkd_boxes_flips_and_words_come_along(
    dtype: str, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    boxes = writers.fkd(tmp_path / "fkd", sizes, dtype=dtype)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32, "--json")
    facts = json.loads(done.out)
    assert (done.code, facts["views"], facts["samples"], facts["format"]) == (0, 3, 12, "1.2")
    assert facts["spec"]["imported"]["origin"] == "FKD"
    store, _ = opened(tmp_path / "c.zarr", folder)
    stored = torch.load(next((tmp_path / "fkd").rglob("n01_2.tar")), weights_only=False)
    for view in range(3):
        row = store.table.keys.index("n01_2")
        params = view_params.parameters(store, view, np.array([row]))
        assert params.box_B4[0].tolist() == boxes["n01/n01_2"][view].tolist()
        assert bool(params.flip_B[0]) == bool(stored[1][view])
        kept, tail = stored_probabilities(store, "n01_2", view)
        expected = dict(zip(stored[2][view][0].astype(int), stored[2][view][1], strict=True))
        assert kept.keys() == expected.keys()
        assert all(abs(kept[c] - p) < 0.03 for c, p in expected.items())
        assert abs(tail - (1 - sum(map(float, expected.values())))) < 0.01
    assert kdcache("verify", tmp_path / "c.zarr", "--data", folder / "photos").code == 0
    said = kdcache("info", tmp_path / "c.zarr").out
    assert "FKD" in said
    assert "bilinear" in said
    if dtype == "f4":
        assert trains(tmp_path / "c.zarr", folder, tmp_path, kdcache).code == 0


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


def test_fkd_views_are_those_of_its_student(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    """Replay shows what FKD's own loader does: Pillow's crop and bilinear resize, then the flip."""
    writers.fkd(tmp_path / "fkd", sizes)
    assert import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32).code == 0
    store, images = opened(tmp_path / "c.zarr", folder)
    schedule = Schedule(store, 1, 12, seed=0)
    plan = schedule.plan(1)
    batch = next(iter(create_loader.native(store, images, schedule, 1).epoch(1)))
    for row, pixels in zip(plan.row_M, batch.pixels, strict=True):
        name = images.names[row]
        coords, flip, _ = torch.load(tmp_path / f"fkd/train/{name}.tar", weights_only=False)
        picture = Image.open(folder / f"photos/{name}.JPEG").convert("RGB")
        top, left, height, width = coords[1] * np.tile(picture.size[::-1], 2)
        crop = picture.crop((left, top, left + width, top + height))
        theirs = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(pixels, theirs[:, ::-1] if flip[1] else theirs)


@pytest.mark.parametrize("kind", ["legacy", "old", "smoothing"])
def test_older_files_of_fkd(kind: str, sizes: Sizes, tmp_path: Path, import_: Command) -> None:
    writers.fkd(tmp_path / "fkd", sizes, kind=kind, kept=1 if kind == "smoothing" else 2)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32)
    assert done.code == 0, done.err


def endless() -> list:
    """A list that is small in a file and whose `repr` has 2^40 numbers."""
    value: list = [0, 0]
    for _ in range(39):
        value = [value, value]
    return value


def rewrite(path: Path, change: Callable[[list], object]) -> None:
    value = torch.load(path, weights_only=False)
    change(value)
    torch.save(value, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.__setitem__(0, v[0] * 0.37), "another picture or another size"),
        (lambda v: v[0].__setitem__((0, 2), 1.5), "another picture or another size"),
        (lambda v: v[0].__setitem__((0, 2), np.nan), "another picture or another size"),
        (lambda v: v[2].__setitem__((0, 0, 0), 3), "outside of 0..2"),
        (lambda v: v[2].__setitem__((0, 0, 0), 0.5), "not whole"),
        (lambda v: v[2].__setitem__((0, 0), 1.0), "names a class twice"),
        (lambda v: v[2].__setitem__((0, 1), 0.9), "more than 1"),
        (lambda v: v[2].__setitem__((0, 1, 0), np.nan), "has an invalid probability"),
        (lambda v: v.pop(), "no list of coordinates"),
        (lambda v: v.__setitem__(1, [np.zeros(2)] * 3), "neither true nor false"),
        (lambda v: v.__setitem__(2, v[2][:2]), "FKD's are floats"),
        (lambda v: v.__setitem__(slice(None), [a[:2] for a in v]), "not of one run"),
    ],
)
def test_files_that_are_not_of_these_pictures_are_refused(
    change: Callable[[list], object], message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    rewrite(tmp_path / "fkd/train/n02/n02_1.tar", change)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c.zarr", "--size", 32)
    assert done.code == 1
    assert message in " ".join(done.err.split())
    assert "n02_1.tar" in done.err.replace("\n", "")


def test_a_folder_of_other_images_is_refused(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "hard", sizes, kind="hard")
    assert "hard labels" in import_("fkd", tmp_path / "hard", tmp_path / "c").err
    writers.fkd(tmp_path / "fkd", sizes)
    extra = tmp_path / "fkd/train/n02/n02_9.tar"
    shutil.copy(tmp_path / "fkd/train/n02/n02_1.tar", extra)
    assert "n02_9.tar is of none" in " ".join(
        import_("fkd", tmp_path / "fkd", tmp_path / "c").err.split()
    )
    extra.rename(extra.with_name("x"))
    (tmp_path / "fkd/train/n02/n02_1.tar").unlink()
    assert "no soft label" in import_("fkd", tmp_path / "fkd", tmp_path / "c").err
    assert import_("fkd", folder / "photos", tmp_path / "c").code == 1
    assert import_("fkd", tmp_path / "nothing", tmp_path / "c").code == 2
    assert not (tmp_path / "c").exists()


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


@pytest.mark.parametrize("keys", ["names", "numbers"])
def test_tinyvit_is_read_with_its_odd_cases(
    keys: str, folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    names = list(sizes)
    own = [n.split("/")[1] if keys == "names" else str(i) for i, n in enumerate(names)]
    records = writers.tinyvit(tmp_path / "t", own, [writers.label_of(n) for n in names])
    done = import_("tinyvit", tmp_path / "t", tmp_path / "c.zarr")
    assert done.code == 0, done.err
    assert "Nobody but TinyViT" in " ".join(done.out.split())
    store, _ = Cache.open(tmp_path / "c.zarr"), None
    for view in range(2):
        seeds = store.read_params(Part(view, 0)).seed_B
        for i, name in enumerate(names):
            key, record = name.split("/")[1], records[view, i]
            assert seeds[store.table.keys.index(key)] == record["seed"]
            kept, tail = stored_probabilities(store, key, view)
            assert kept.keys() == set(record["index"].tolist())
            expected = max(1 - float(record["p"].astype("f8").sum()), 0)
            assert abs(tail - expected) < 0.01
            total = max(float(record["p"].astype("f8").sum()), 1)
            for c, p in zip(record["index"], record["p"], strict=True):
                assert abs(kept[int(c)] - float(p) / total) < 0.03
    assert kdcache("verify", tmp_path / "c.zarr").code == 0
    said = trains(tmp_path / "c.zarr", folder, tmp_path, kdcache)
    assert said.code == 2
    assert "imported" in said.err


def damage(root: Path, what: str) -> None:
    folder = root / "logits_top2_epoch1"
    values, keys = folder / "rank0-values.bin", folder / "rank0-keys.txt"
    data = bytearray(values.read_bytes())  # the first record is superseded by rank 1's
    match what:
        case "short":
            values.write_bytes(data[:-5])
        case "keys":
            keys.write_text(keys.read_text()[:-3])
        case "foreign":
            keys.write_text(keys.read_text().replace("n00_0\n", "n77_0\n"))
        case "rank":
            values.unlink()
        case "k":
            folder.rename(root / "logits_top3_epoch1")
        case "rises":
            data[20:22], data[22:24] = data[22:24], data[20:22]
            values.write_bytes(data)
        case "class":
            data[16:18] = b"\xff\xff"
            values.write_bytes(data)
        case "seed":
            data[15] |= 0x80
            values.write_bytes(data)
        case "epoch":
            folder.rename(root / "logits_top2_epoch2")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("short", "cut short"),
        ("keys", "cut short"),
        ("foreign", "'n77_0' is none of"),
        ("rank", "first without"),
        ("k", "one kind at a time"),
        ("rises", "do not fall"),
        ("class", "outside of 0..2"),
        ("seed", "the invalid seed"),
        ("epoch", "lacks epoch 1"),
    ],
)
def test_damaged_logits_of_tinyvit_are_refused(
    what: str, message: str, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    own = [name.split("/")[1] for name in sizes]
    writers.tinyvit(tmp_path / "t", own, [writers.label_of(n) for n in sizes])
    damage(tmp_path / "t", what)
    done = import_("tinyvit", tmp_path / "t", tmp_path / "c.zarr")
    assert done.code == 1
    assert message in " ".join(done.err.split())


def test_other_data_is_no_reason_to_go_on(sizes: Sizes, tmp_path: Path, import_: Command) -> None:
    """Nothing of TinyViT's records but their keys says which images they are of."""
    keys = [name.split("/")[1] for name in sizes]
    writers.tinyvit(tmp_path / "t", keys, [writers.label_of(n) for n in sizes])
    out = tmp_path / "c.zarr"
    assert import_("tinyvit", tmp_path / "t", out).code == 0
    (out / Part(1, 0).record).unlink()
    others = writers.pictures(tmp_path / "others", count=3)
    writers.tinyvit(tmp_path / "u", [n.split("/")[1] for n in others], [0] * len(others))
    said = import_("tinyvit", tmp_path / "u", out, "--data", tmp_path / "others")
    assert (said.code, "another cache" in said.err) == (2, True)


def test_run_again_goes_on_and_another_source_is_another_cache(
    sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    out = tmp_path / "c.zarr"
    assert import_("fkd", tmp_path / "fkd", out, "--size", 32).code == 0
    before = Cache.open(out).content_id()
    (out / Part(1, 0).record).unlink()
    assert import_("fkd", tmp_path / "fkd", out, "--size", 32).code == 0
    assert Cache.open(out).content_id() == before
    said = import_("fkd", tmp_path / "fkd", out, "--size", 48)
    assert (said.code, "another cache" in said.err) == (2, True)
    begun, old = Cache.open(out), tmp_path / "old.zarr"
    Cache.create(old, replace(begun.spec, renderer="kernels-1"), begun.table, 1)
    assert import_("fkd", tmp_path / "fkd", old, "--size", 32).code == 0
    spec = Cache.open(old).spec
    assert (spec.renderer, spec.format_version) == ("kernels-1", "1.1")


def test_fewer_classes_are_kept_on_request(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command
) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    done = import_("fkd", tmp_path / "fkd", tmp_path / "c", "--size", 32, "--keep", "k=1")
    assert done.code == 0
    store, _ = opened(tmp_path / "c", folder)
    kept, tail = stored_probabilities(store, "n02_3", 0)
    assert list(kept) == [2]
    assert kept[2] + tail == pytest.approx(1)
    assert import_("fkd", tmp_path / "fkd", tmp_path / "d", "--keep", "k=1,t2=2").code == 2


def test_options_that_an_import_requires(sizes: Sizes, tmp_path: Path, kdcache: Command) -> None:
    writers.fkd(tmp_path / "fkd", sizes)
    said = kdcache("import", "fkd", tmp_path / "fkd", "--out", tmp_path / "c")
    assert (said.code, "--data" in said.err) == (2, True)
    said = kdcache("import", "dense", tmp_path / "a.npy", "--data", "x", "--out", tmp_path / "c")
    assert said.code == 2


def test_a_teacher_at_chance_level_on_these_labels_is_refused(
    tmp_path: Path, kdcache: Command
) -> None:
    sizes = writers.pictures(tmp_path / "photos", count=70)
    keys = [name.split("/")[1] for name in sizes]
    shifted = [(writers.label_of(name) + 1) % CLASSES for name in sizes]
    writers.tinyvit(tmp_path / "t", keys, shifted)
    command = ("import", "tinyvit", tmp_path / "t", "--data", tmp_path / "photos")
    said = kdcache(*command, "--out", tmp_path / "c")
    assert said.code == 1
    assert "0.00 % of the labels" in " ".join(said.err.split())
    assert kdcache(*command, "--out", tmp_path / "d", "--no-labels", "--classes", 3).code == 0


@pytest.fixture
def imported(sizes: Sizes, tmp_path: Path, import_: Command) -> Cache:
    """A cache of ml-dr's mixed views, which a test may damage."""
    writers.ml_dr(tmp_path / "dr", sizes, views=1)
    assert import_("ml-dr", tmp_path / "dr", tmp_path / "c.zarr").code == 0
    return Cache.open(tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("column", "at", "value", "message"),
    [
        ("box_BP4", (3, 0, 0), -1, "a box .* that leaves"),
        ("box_BP4", (3, 1, 2), 5000, "a box .* that leaves"),
        ("box_BP4", (3, 1, 3), 2**31 - 1, "a box .* that leaves"),
        ("flip_BP", (3, 0), 2, "a flip"),
        ("codes_BPL", (3, 1, 1), 17, "an operation 17"),
        ("codes_BPL", (3, 1, 1), 255, "an operation 255"),
        ("arguments_BPL6", (3, 1, 1, 5), 2**31 - 1, "beyond all pictures"),
        ("erase_BPE4", (3, 0, 0), (0, 0, 33, 1), "an erased box"),
        ("erase_BPE4", (3, 0, 0), (0, 0, 1, 0), "an erased box"),
        ("cut_B4", (3,), (30, 30, 3, 3), "a cut box"),
        ("partner_B", (3,), 12, "a partner in row 12 of 12"),
        ("weight_B", (3,), 65_537, "a weight above 1"),
    ],
)
def test_parameters_that_cannot_be_are_no_views(
    column: str, at: tuple[int, ...], value: object, message: str, imported: Cache, kdcache: Command
) -> None:
    """Whoever wrote them gave them right digests: the values are looked at themselves."""
    part = Part(0, 0)
    stored, probes = imported.read(part)
    params = imported.read_params(part)
    getattr(params, column)[at] = value
    (imported.path / part.record).unlink()
    assert imported.write(part, stored, probes, {}, {}, params)
    with pytest.raises(CacheDamaged, match=message):
        imported.read_params(part)
    said = kdcache("verify", imported.path, "--json")
    assert (said.code, json.loads(said.out)["verdict"]) == (1, "damaged")


def test_a_flipped_bit_in_a_box_is_noticed(imported: Cache, kdcache: Command) -> None:
    chunk = imported.path / "views/box/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    said = kdcache("verify", imported.path)
    assert said.code == 1
    assert "views/box" in said.out


def test_imported_views_need_their_parameters(imported: Cache) -> None:
    stored, probes = imported.read(Part(0, 0))
    with pytest.raises(ValueError, match="belong to imported views"):
        imported.write(Part(0, 0), stored, probes, {}, {})


def test_a_teacher_of_unknown_weights_is_not_recomputed(
    imported: Cache, folder: Path, kdcache: Command
) -> None:
    data = ("--data", folder / "photos")
    said = kdcache("verify", imported.path, *data, "--recompute", 2)
    assert (said.code, "were imported" in said.err) == (2, True)


def test_imported_views_have_one_size(
    imported: Cache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    out = tmp_path / "sheet.png"
    asked = kdcache("views", imported.location, "--data", folder, "--size", 16, "--out", out)
    assert asked.code == 2
    assert "size=16 cannot be: the views of" in asked.err
    assert "were imported from" in asked.err
    with pytest.raises(UsageError, match="size=16 cannot be"):
        Schedule(imported, 1, 1, 0, size=16)
    own = imported.spec.views.size
    assert Schedule(imported, 1, 1, 0, size=own).views == imported.spec.views


def test_a_sheet_shows_the_imported_views(
    imported: Cache, folder: Path, tmp_path: Path, kdcache: Command
) -> None:
    data = ("--data", folder / "photos", "--out", tmp_path / "s.png")
    said = kdcache("views", imported.path, *data, "--json")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    row = imported.table.keys.index(facts["views"][0]["key"])
    params = imported.read_params(Part(0, 0))
    assert facts["views"][0]["box"] == params.box_BP4[row, 0].tolist()


@pytest.mark.slow
def test_caches_with_the_same_boxes_are_mixed_and_others_not(
    folder: Path, sizes: Sizes, tmp_path: Path, import_: Command, kdcache: Command
) -> None:
    """FKD's --reference_path gives several teachers the same boxes."""
    for name in ("a", "b", "c"):
        writers.fkd(tmp_path / name, sizes)
    for path in (tmp_path / "b").rglob("*.tar"):
        rewrite(path, lambda v: v.__setitem__(2, np.stack([v[2][:, 0], v[2][:, 1] / 2], axis=1)))
    for path in (tmp_path / "c").rglob("*.tar"):
        rewrite(path, lambda v: v.__setitem__(1, ~v[1]))
    for name in ("a", "b", "c"):
        source = tmp_path / name, tmp_path / f"{name}.zarr"
        assert import_("fkd", *source, "--size", 32, "--teacher", name).code == 0
    a, b, c = (tmp_path / f"{name}.zarr" for name in "abc")
    done = kdcache("ensemble", a, b, "--out", tmp_path / "ab.zarr")
    assert done.code == 0, done.err
    store = Cache.open(tmp_path / "ab.zarr")
    for view in range(3):
        assert store.read_params(Part(view, 0)).equals(Cache.open(a).read_params(Part(view, 0)))
    assert kdcache("verify", tmp_path / "ab.zarr", "--data", folder / "photos").code == 0
    said = kdcache("ensemble", a, c, "--out", tmp_path / "ac.zarr")
    assert said.code == 1
    train = ("train", "digits", "--cache", a, "--cache", c, "--data", folder / "photos")
    few = ("epochs=1", "views_per_epoch=1", "batch_size=12", "temperature=1.0")
    said = kdcache(*train, "--out", tmp_path / "run", *few)
    assert said.code == 1
    assert "has different boxes" in " ".join(said.err.split())


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
