"""Image classifiers of transformers: a name on the Hub, a folder, or a type such as `vit`.

Weights are safetensors; code of a repository is never run, and neither are kernels or adapters that
its config.json names. Preprocessing is that of the image processor; rescaling other than by 1/255
becomes part of mean and deviation. A type stands for an untrained network alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_tools.errors import TeacherError, UsageError
from cache_tools.file_contents import parse_json
from cache_tools.runtime.device_memory import is_out_of_memory
from pipeline.networks import interface

_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's filters by their number, as in `resample`."""


def untrained(
    name: str, num_classes: int, options: Mapping[str, Any], config: Mapping[str, Any]
) -> nn.Module:
    """Create a network of a configuration (`registry.Source`)."""
    library = _library()
    found = _config(name)
    unknown = sorted(key for key in options if not hasattr(found, key))
    if unknown and "model_type" not in options:  # those of a folder are whole
        raise UsageError(f"the configuration of transformers:{name} has no {unknown[0]!r}.")
    found = type(found).from_dict({**found.to_dict(), **options})
    if num_classes:
        found.num_labels = num_classes
    found._attn_implementation, found.dtype = None, torch.float32
    model = library.AutoModelForImageClassification.from_config(found, trust_remote_code=False)
    return _adapt(model, name, config)


def pretrained(name: str) -> tuple[str, nn.Module]:
    """Create a network with its weights (`registry.Source`)."""
    library, place = _library(), Path(name)
    if name in library.CONFIG_MAPPING and not place.is_dir():
        raise UsageError(
            f"transformers:{name} is a type of networks and names no weights. Choose one with "
            "weights, such as transformers:google/vit-base-patch16-224, or a folder."
        )
    if place.is_dir() and not any(place.glob("*.safetensors")):
        raise TeacherError(
            f"{name} has no weights in safetensors, and nothing else is opened. Write them with "
            "model.save_pretrained(FOLDER) of transformers."
        )
    found = _config(name)
    found._attn_implementation = None
    try:
        with _quiet():
            model, report = library.AutoModelForImageClassification.from_pretrained(
                name,
                config=found,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # of many kinds: sockets, files, configurations
        if is_out_of_memory(error):
            raise
        raise TeacherError(
            f"transformers {library.__version__} cannot load {name} ({_first(error)}). It needs "
            "the config.json of an image classifier and weights in safetensors."
        ) from None
    if lacking := sorted(report["missing_keys"]):
        raise TeacherError(
            f"the weights of transformers:{name} lack {len(lacking)} tensors of "
            f"{type(model).__name__} (first: {lacking[0]}), which would be random. A teacher needs "
            "its classifier, too: choose a network fine-tuned for classification."
        )
    local = f"local:transformers:{model.config.model_type}"
    return local if place.is_dir() else f"transformers:{name}", _adapt(
        model, name, {}, required=True
    )


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "networks of transformers need transformers: pip install 'kdcache[transformers]'."
        ) from None
    return transformers


def _config(name: str) -> Any:
    """Read the configuration of a name, a folder, or a type."""
    library, place = _library(), Path(name)
    if name in library.CONFIG_MAPPING and not place.is_dir():
        return library.CONFIG_MAPPING[name]()
    if not place.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise UsageError(f"there is no folder {name}. Pass transformers:FOLDER or a Hub name.")
    try:
        found = library.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise TeacherError(
            f"the configuration of transformers:{name} cannot be read ({_first(error)}). Check the "
            "network and the name, or pass transformers:FOLDER."
        ) from None
    if getattr(found, "quantization_config", None):
        raise UsageError(f"transformers:{name} is quantized. Choose its weights in fp32 or bf16.")
    return found


def _adapt(model: Any, name: str, config: Mapping[str, Any], required: bool = False) -> nn.Module:
    """Adapt a network, whose preprocessing must be known if `required`."""
    described = parse_json(model.config.to_json_string(use_diff=False))
    del described["_name_or_path"]  # a path of this machine
    side = described.get("image_size")
    own = {"input_size": (3, side, side)} if isinstance(side, int) else {}
    own |= {**(described.get("pretrained_cfg") or {}), **config}
    if "mean" not in own and (required or name not in _library().CONFIG_MAPPING):
        try:
            seen = _library().AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            own |= {**_preprocessing(seen), **config}
        except Exception as error:  # of many kinds
            if required:
                raise TeacherError(
                    f"the preprocessing of transformers:{name} is unknown ({_first(error)}). Write "
                    "it beside the weights: AutoImageProcessor.from_pretrained(ORIGINAL)"
                    ".save_pretrained(FOLDER)."
                ) from None
        else:
            if required and getattr(seen, "do_flip_channel_order", False):
                model.register_forward_pre_hook(_to_bgr)
    options = {k: v for k, v in described.items() if k not in ("pretrained_cfg", "model_args")}
    kind = f"transformers:{model.config.model_type}"
    return interface.adapt(model, kind, own, options, options)


def _preprocessing(seen: Any) -> dict[str, Any]:
    """Describe an image processor in timm's keys."""

    def read(key: str, default: Any) -> Any:
        value = getattr(seen, key, None)
        return default if value is None else value

    scale = 255 * read("rescale_factor", 1 / 255) if read("do_rescale", True) else 255.0
    shift = float(read("rescale_offset", False))
    mean, std = read("image_mean", (0.0,) * 3), read("image_std", (1.0,) * 3)
    if not read("do_normalize", False):
        mean, std = (0.0,) * 3, (1.0,) * 3
    twice = read("include_top", False) and read("do_normalize", False)
    shown = dict(read("crop_size", None) or read("size", None) or {})
    side = shown.get("height") or shown.get("shortest_edge")
    resized = dict(read("size", None) or {})
    edge = resized.get("shortest_edge") or resized.get("height")
    cropped = side / edge if side and edge and read("do_center_crop", False) else 1.0
    crop = read("crop_pct", None) or cropped
    return ({"input_size": (3, side, side)} if side else {}) | {
        "interpolation": _PILLOW[int(read("resample", 3))],
        "crop_pct": min(float(crop), 1.0),
        "mean": tuple((m + shift) / scale for m in mean),
        "std": tuple((s * s if twice else s) / scale for s in std),
    }


def _to_bgr(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Reverse the channels of the pictures, for networks trained on BGR."""
    return (inputs[0].flip(1), *inputs[1:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no bars and no reports of transformers in the body."""
    hf: Any = _library().utils.logging

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()


def _first(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:300].rstrip(".")
    return f"{type(error).__name__}: {text}"
