"""Page-locked host memory, which a GPU copies from and to while the host goes on."""

import functools
import logging

import torch
from torch import Tensor

log = logging.getLogger("kdcache")


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate host memory, page-locked where possible; otherwise copies of it block the host."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        _log_once(str(error).partition("\n")[0])
        return torch.empty(shape, dtype=dtype)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; the host does not wait for a GPU. On the CPU, the tensor itself."""
    if device.type != "cuda":
        return tensor
    return empty(tuple(tensor.shape), tensor.dtype).copy_(tensor).to(device, non_blocking=True)


@functools.cache
def _log_once(reason: str) -> None:
    log.info("memory is not page-locked (%s): copies wait", reason)
