"""Choice of the device, for both stages: it is tried before there is work to lose.

`torch` comes as an argument, since nothing in `cache_tools` imports it.
"""

from typing import Any

from cache_tools.errors import UsageError


def select(torch: Any, name: str | None, local: int | None = None) -> Any:
    """Select the named device, else a GPU if any, else the CPU, and compute on it once.

    Args:
        torch: The package.
        name: Name such as cpu, cuda, cuda:1; None, "": a GPU if there is one.
        local: Number of this process among several of this machine, each of which takes a GPU of
            its own: modulo the visible ones, since Slurm's --gpus-per-task=1 shows each its own.

    Returns:
        A `torch.device`.

    Raises:
        UsageError: There is no such device, or it cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if local is not None and name.partition(":")[0] == "cuda":
            name = f"cuda:{local % max(torch.cuda.device_count(), 1)}"
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UsageError(
            f"the device {name} cannot be used ({str(error).partition(chr(10))[0]}). Pass "
            "--device with cpu, cuda or cuda:1."
        ) from None
    return device
