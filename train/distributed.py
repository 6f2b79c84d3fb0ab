"""Processes that train one student together: started by a launcher, else one alone.

Every process makes the same plan and takes its share of each batch, so that the views of a step
and, but for batch normalisation without `sync_bn`, the mean of the gradients are those of one
process with the whole batch. Whatever is decided from a clock or a signal is decided together: a
process that stops alone would leave the others waiting.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime import launcher
from cache_tools.runtime.device import select
from cache_tools.storage import system_errors
from train.peers import Peers, first_line, is_of_a_backend


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int = 0
    """Number of this process, from 0; process 0 writes files and logs."""
    size: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and logs."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return True if the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        """Sum each value over all processes."""
        if self.size == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        means = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def all(self, value: Any) -> list[Any]:
        """Gather one value of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` in process 0; return its result, or raise its error, in all."""
        result = None
        try:
            result = work() if self.is_main else None
        except Exception as error:
            if (result := system_errors.explained(error)) is None:
                raise
        result = self.broadcast(result)
        if isinstance(result, KdcacheError):
            raise result
        return result

    def broadcast(self, value: Any) -> Any:
        """Broadcast a picklable value of process 0 to all."""
        if self.size == 1:
            return value
        found = [value]
        distributed.broadcast_object_list(found)
        return found[0]


ALONE = World()


@contextlib.contextmanager
def join(device: str | None) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that a launcher started, while the body runs.

    Yields:
        The processes, and this one's device.

    Raises:
        UsageError: The device cannot be used, or the other processes cannot be found.
        KdcacheError: Another process was lost (`train.peers`).
    """
    launch = launcher.find()
    if launch.count == 1:
        yield ALONE, select(torch, device)
        return
    os.environ.update(launcher.rendezvous(launch))
    chosen = select(torch, device, launch.local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, rank=launch.rank, world_size=launch.count)
        peers = Peers(launch.rank, launch.count)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UsageError(
            f"process {launch.rank} of {launch.count}, started by {launch.by}, did not find the "
            f"others at {where} ({first_line(error)}). Check that all have started, and that "
            "MASTER_ADDR and MASTER_PORT are those of process 0 and free."
        ) from None
    world = World(launch.rank, launch.count)
    try:
        yield world, chosen
        world.any(False)
        peers.leave()
        world.any(False)  # the store is one of theirs: it is left when nobody watches any more
    except BaseException as error:
        peers.leave(error)
        if is_of_a_backend(error):
            raise peers.lost(first_line(error)) from None
        raise
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()
