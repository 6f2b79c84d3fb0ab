"""Image classifiers of transformers: folders, heads, preprocessing; nothing but safetensors."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache_tools.errors import TeacherError, UsageError
from pipeline.networks import of_transformers, registry
from pipeline.teacher import create
from pipeline.teacher import teacher as teachers

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True}, 0.5, 0.25),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 0.0, 1.0),
        ({"do_rescale": False}, 0.0, 1 / 255),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, 0.5, 0.5),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True,
          "include_top": True}, 0.5, 0.0625),
    ],
)  # fmt: skip
def test_every_way_of_scaling_is_a_mean_and_a_deviation(
    processor: dict[str, Any], mean: float, std: float
) -> None:
    found = of_transformers._preprocessing(SimpleNamespace(**processor))
    assert found["mean"] == pytest.approx((mean,) * 3)
    assert found["std"] == pytest.approx((std,) * 3)


def test_sizes_and_crops_are_timms() -> None:
    size, crop = {"shortest_edge": 256}, {"height": 224, "width": 224}
    kept = SimpleNamespace(size=size, crop_size=crop, do_center_crop=True, resample=2)
    found = of_transformers._preprocessing(kept)
    assert (found["input_size"], found["crop_pct"]) == ((3, 224, 224), 0.875)
    assert found["interpolation"] == "bilinear"
    convnext = SimpleNamespace(size={"shortest_edge": 224}, crop_pct=0.9)
    assert of_transformers._preprocessing(convnext)["crop_pct"] == 0.9


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'kdcache\[transformers\]'"):
        create.create("transformers:google/vit-base-patch16-224")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network of ten classes and its image processor."""
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, num_labels=10)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(
        image_mean=[0.1] * 3, size={"height": 32, "width": 32}
    )
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_folder_is_a_teacher(folder: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    own = transformers.ViTForImageClassification.from_pretrained(folder)
    loaded = teachers.load(f"transformers:{folder}", 32, "fp32")
    spec = loaded.spec
    assert (spec.name, spec.num_classes) == ("local:transformers:vit", 10)
    assert (spec.mean, spec.std, spec.input_size) == ((0.1,) * 3, (0.5,) * 3, 32)
    assert spec.weights_sha256 == teachers.weights_sha256(own)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(loaded.model(x), own.eval()(x).logits)
    with pytest.raises(UsageError, match="takes pictures of 32 px only"):
        teachers.load(f"transformers:{folder}", 48, "fp32")
    with pytest.raises(UsageError, match=f"name it as transformers:{folder}"):
        create.create(str(folder))


@pytest.mark.slow
def test_two_heads_are_their_mean(folder: Path) -> None:
    """DeiT with its distillation token; timm's is the same mean in evaluation."""
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.DeiTForImageClassificationWithTeacher(
        transformers.DeiTConfig(**SIZES, num_labels=10)
    )
    model.save_pretrained(folder)
    loaded = create.create(f"transformers:{folder}")[1]
    x = torch.rand(2, 3, 32, 32)
    found = model.eval()(x)
    assert torch.equal(loaded(x), (found.cls_logits + found.distillation_logits) / 2)


@pytest.mark.slow
def test_folders_that_cannot_be(folder: Path) -> None:
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())

    def refused(message: str, kind: type[Exception] = TeacherError, **values: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        with pytest.raises(kind, match=message):
            create.create(f"transformers:{folder}")

    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__ + '.ran').touch()\n")
    refused("configuration .* cannot be read", auto_map=code, model_type="evil")
    assert not (folder / "evil.py.ran").exists()
    refused("is quantized", UsageError, quantization_config={"quant_method": "awq"})
    refused("cannot load", model_type="bert")
    refused("cannot load", hidden_size=32)
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith("classifier")}, path)
    refused("lack 2 tensors of ViTForImageClassification.*needs its classifier")
    path.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused("no weights in safetensors, and nothing else is opened")
    (folder / "preprocessor_config.json").unlink()
    save_file(state, path)
    refused("the preprocessing of .* is unknown.*AutoImageProcessor")


@pytest.mark.slow
def test_students(folder: Path) -> None:
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = registry.untrained("transformers:vit", 5, options | {"image_size": 32})
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UsageError, match="has no 'depth'"):
        registry.untrained("transformers:vit", 5, {"depth": 1})
    with pytest.raises(UsageError, match="names no weights"):
        create.create("transformers:vit")
    torch.manual_seed(3)
    first = registry.untrained(f"transformers:{folder}", 7)
    torch.manual_seed(3)
    second = registry.untrained(f"transformers:{folder}", 7)
    assert teachers.weights_sha256(first) == teachers.weights_sha256(second)
    assert first.pretrained_cfg["mean"] == (0.1,) * 3  # type: ignore[index]
