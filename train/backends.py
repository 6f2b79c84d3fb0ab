"""Settings of torch's backends for the networks of stage 2."""

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def configure(device: torch.device, deterministic: bool = False) -> None:
    """Set what timm's `train.py` and `validate.py` set on a GPU, or deterministic algorithms.

    cuDNN times its algorithms and takes the fastest, and matrix products of fp32 use TF32. With
    `deterministic` no algorithm is chosen by its time, and cuBLAS has a workspace of constant size,
    without which its results depend on the streams in use; the environment's own setting is kept.
    Called before the first product: cuBLAS reads the setting once. Stage 1 does none of this: a
    part that is made again would have other bits.
    """
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.set_float32_matmul_precision("high")
