"""A GPU whose memory is the host's: the order of streams, events and copies, without a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

CUDA = torch.device("cuda")


@dataclass
class Event:
    """An event; it has passed unless the GPU is busy."""

    gpu: "FakeGpu"
    options: dict[str, bool]
    stream: object = None

    def record(self, stream: object) -> None:
        self.stream = stream

    def query(self) -> bool:
        return not self.gpu.busy

    def synchronize(self) -> None:
        self.gpu.awaited.append(self)

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class Stream:
    """A stream; `waited` has the events it waits for."""

    def __init__(self, *_: object) -> None:
        self.waited: list[Event] = []

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)


@dataclass
class Copy:
    """A copy from the host to the device, or back."""

    address: int
    """Of the host's memory."""
    pinned: bool
    non_blocking: bool
    stream: Stream


@dataclass
class FakeGpu:
    """A GPU without hardware: its streams, and the calls made on them."""

    compute: Stream = field(default_factory=Stream)
    busy: bool = True
    lockable: bool = True
    """False: page-locking fails."""
    copies: list[Copy] = field(default_factory=list)
    awaited: list[Event] = field(default_factory=list)
    uses: list[Stream] = field(default_factory=list)
    """Streams for which a tensor of another was kept."""
    pinned: list[torch.Tensor] = field(default_factory=list)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        at = tensor.data_ptr()
        return any(p.data_ptr() <= at < p.data_ptr() + max(1, p.nbytes) for p in self.pinned)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Put a GPU in place of torch's."""
    fake, current = FakeGpu(), []
    empty, to = torch.empty, torch.Tensor.to

    def allocate(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory and not fake.lockable:
            raise RuntimeError("CUDA error: out of locked memory\nmore")
        made = empty(*shape, **options)
        fake.pinned += [made] if pin_memory else []
        return made

    def move(self: torch.Tensor, *args: Any, non_blocking: bool = False, **options: Any) -> Any:
        if not args or args[0] != CUDA:
            return to(self, *args, **options)
        stream = current[-1] if current else fake.compute
        fake.copies.append(Copy(self.data_ptr(), fake.is_pinned(self), non_blocking, stream))
        return self.clone()

    @contextmanager
    def use(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.Tensor, "to", move)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self, *_: fake.is_pinned(self))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: fake.uses.append(stream))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: fake.compute)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: Event(fake, options))
    return fake
