"""Files of dense logits, in numpy's or safetensors' formats.

The file holds `logits` [N, C] or [V, N, C] (in an .npy, or an .npz or .safetensors of one array, by
whatever name), and optionally `keys` [N] and `labels` [N]. Nothing is unpickled. Numbers that are
probabilities are refused unless they are declared: a second softmax would flatten them.

Shapes: V views, N samples, C classes, B rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from cache_tools.errors import DataError, UsageError
from cache_tools.file_contents import check_safetensors, describe_file, open_plain, parse_json
from cache_tools.runtime import host_memory
from cache_tools.spec.dataset import NO_LABEL
from cache_tools.storage import zips
from cache_tools.targets import dense

SUFFIXES = (".npy", ".npz", ".safetensors")
_LOOKED_AT = 1024
_MOST_EXPANSION, _MOST_LARGE, _LARGE = 100, 8, 2**28
"""Of an array in an .npz, and of one of more than so many bytes."""
_LEAST = 1e-30
"""Probability in place of 0, which has no logarithm."""


@dataclass(frozen=True)
class Logits:
    """Dense logits with keys and labels of their rows."""

    values_VNC: NDArray[Any]
    """Floats as they are in the file; of bfloat16, two bytes each (numpy's V2)."""
    keys: tuple[str, ...]
    label_N: NDArray[np.int32]
    """NO_LABEL where there is none."""
    path: Path
    """The file, for messages."""
    probabilities: bool = False
    """True if the file holds probabilities."""

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.values_VNC.shape[2])

    def rows(self, view: int, row_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read the logits of some rows, of probabilities their logarithm.

        Raises:
            DataError: A row of probabilities is none.
        """
        found = np.ascontiguousarray(self.values_VNC[view, row_B])
        if found.dtype.kind == "V":
            found = (found.view("<u2").astype("<u4") << 16).view("<f4")
        values = np.asarray(found, dtype=np.float32)
        if not self.probabilities:
            return values
        wrong = np.flatnonzero(~dense.are_probabilities(values))
        if len(wrong):
            raise DataError(
                f"view {view} of {self.keys[row_B[wrong[0]]]!r} in {self.path} is no distribution: "
                f"{values[wrong[0]][:5].tolist()}…, sum {float(values[wrong[0]].sum()):.4g}. "
                "Leave --probabilities out if these are logits."
            )
        return np.log(np.maximum(values, _LEAST))


def read(path: Path, probabilities: bool = False) -> Logits:
    """Open a file of logits, or of probabilities if they are declared.

    Raises:
        DataError: There is no such file, or it has other contents.
        UsageError: It has probabilities that are not declared.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is none of {', '.join(SUFFIXES)}.")
    try:
        arrays = _arrays(path)
    except MemoryError as error:
        raise DataError(host_memory.shortage_for(path, error)) from None
    except Exception as error:  # numpy parses heads as Python, zipfile raises many kinds
        raise DataError(
            f"{path}{describe_file(path)} cannot be read: {str(error).rstrip('.')}. Fetch or write "
            "it again."
        ) from None
    name = "logits" if "logits" in arrays else next(iter(arrays), "")
    if name != "logits" and len(arrays) != 1:
        raise DataError(f"{path} has no array named logits, only {', '.join(arrays) or 'none'}.")
    values = arrays[name]
    floats = values.dtype.kind == "f" or values.dtype == "V2"  # bfloat16, as numpy saves it
    if values.ndim not in (2, 3) or not floats or 0 in values.shape or values.shape[-1] < 2:
        raise DataError(
            f"{name} in {path} is {values.dtype} {values.shape}. Logits are floats, [N, C] "
            "or [V, N, C], of two or more classes."
        )
    values = values[None] if values.ndim == 2 else values
    count = values.shape[1]
    keys = arrays.get("keys", np.array([f"{i:09d}" for i in range(count)]))
    labels = arrays.get("labels", np.full(count, NO_LABEL))
    if keys.shape != (count,) or labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(f"keys and labels in {path} must have {count} entries, one per row.")
    least, most, classes = int(labels.min()), int(labels.max()), values.shape[2]
    if not NO_LABEL <= least <= most < classes:
        raise DataError(
            f"the labels in {path} go from {least} to {most}, the logits have {classes} classes: "
            f"labels are {NO_LABEL} (none) to {classes - 1}. Correct them."
        )
    names = tuple(map(str, keys.tolist()))
    logits = Logits(values, names, labels.astype(np.int32), path, probabilities)
    some = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int64))
    if not probabilities and dense.are_probabilities(logits.rows(0, some)).mean() > 0.5:
        raise UsageError(
            f"{path} holds probabilities: its rows are in 0..1 and add up to 1. Logits are what "
            "the softmax is taken of. Pass --probabilities to kdcache import dense, which takes "
            "their logarithm."
        )
    return logits


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file by name; an .npy is mapped, not read."""
    open_plain(path).close()
    if path.suffix == ".npy":
        return {"logits": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            zips.check(archive.zip, path.stat().st_size, _MOST_EXPANSION, _LARGE, _MOST_LARGE)
            some = "logits" in archive.files
            ours = ("logits", "keys", "labels") if some else archive.files
            found = {name: archive[name] for name in ours if name in archive.files}
            if other := [name for name, one in found.items() if not isinstance(one, np.ndarray)]:
                raise ValueError(f"its member {other[0]!r} is no array of numpy")
            return found
    check_safetensors(path)
    with safe_open(path, framework="np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        words = {name: _bfloat16(path, name) for name, kind in kinds.items() if kind == "BF16"}
        return {name: words[name] if name in words else file.get_tensor(name) for name in kinds}


def _bfloat16(path: Path, name: str) -> NDArray[Any]:
    """Map an array of a kind that numpy lacks; the file was checked by safetensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = parse_json(file.read(length))[name]
    begin = 8 + length + entry["data_offsets"][0]
    return np.memmap(path, "V2", "r", begin, tuple(entry["shape"]))
