"""Files of dense logits, in numpy's or safetensors' formats.

The file holds `logits` [N, C] or [V, N, C] (in an .npy, or an .npz or .safetensors of one array, by
whatever name), and optionally `keys` [N] and `labels` [N]. Nothing is unpickled.

Shapes: V views, N samples, C classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DataError, UsageError
from cache_tools.spec.dataset import NO_LABEL

SUFFIXES = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class Logits:
    """Dense logits with keys and labels of their rows."""

    values_VNC: NDArray[np.floating]
    keys: tuple[str, ...]
    label_N: NDArray[np.int32]
    """NO_LABEL where there is none."""

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.values_VNC.shape[2])


def read(path: Path) -> Logits:
    """Open a file of logits.

    Raises:
        DataError: There is no such file, or it has other contents.
    """
    try:
        arrays = _arrays(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    name = "logits" if "logits" in arrays else next(iter(arrays), "")
    if name != "logits" and len(arrays) != 1:
        raise DataError(f"{path} has no array named logits, only {', '.join(arrays) or 'none'}.")
    values = arrays[name]
    if values.ndim not in (2, 3) or values.dtype.kind != "f" or 0 in values.shape:
        raise DataError(
            f"{name} in {path} is {values.dtype} {values.shape}. Logits are floats, [N, C] "
            "or [V, N, C]."
        )
    values = values[None] if values.ndim == 2 else values
    count = values.shape[1]
    keys = arrays.get("keys", np.array([f"{i:09d}" for i in range(count)]))
    labels = arrays.get("labels", np.full(count, NO_LABEL))
    if keys.shape != (count,) or labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(f"keys and labels in {path} must have {count} entries, one per row.")
    return Logits(values, tuple(map(str, keys.tolist())), labels.astype(np.int32))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file by name; an .npy is mapped, not read."""
    if path.suffix == ".npy":
        return {"logits": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            single = len(archive.files) == 1
            ours = [n for n in archive.files if single or n in ("logits", "keys", "labels")]
            return {name: archive[name] for name in ours}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    raise UsageError(f"{path} is none of {', '.join(SUFFIXES)}.")
