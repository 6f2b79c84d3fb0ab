"""Caches of teachers that run in the caller's program: the same bytes, and the same guarantees."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from cache_tools.data.view_renderer import ViewRenderer
from cache_tools.errors import (
    CacheIncomplete,
    CacheMismatch,
    KdcacheError,
    NonFinite,
    TeacherError,
    UsageError,
)
from cache_tools.reader import open_reader
from cache_tools.store.cache import Cache
from cache_tools.store.commits import Part
from pipeline import writer as writers
from pipeline.teacher.info import TeacherInfo
from pipeline.worker import stage1
from pipeline.writer import CacheWriter, WriterBatch
from tests.helpers.fake_gpu import CUDA, FakeGpu
from tests.helpers.paths import ROOT
from tests.helpers.stage1 import files

VALUES = {"num_views": 4, "views.mixup": 0.5, "views_per_decode": 1}
PATIENCE = 120
Open = Callable[..., CacheWriter]


@pytest.fixture(scope="module")
def network(teacher: Path) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{teacher}", pretrained=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def opened(tmp_path: Path, digits: Path, network: nn.Module) -> Open:
    def open_(name: str = "c.zarr", **options: Any) -> CacheWriter:
        teacher = TeacherInfo.of(network, "local:test_resnet")
        given = {"recipe": "digits", "values": VALUES, "teacher": teacher, "device": "cpu"}
        return writers.create(tmp_path / name, data=digits, **(given | options))

    return open_


def write(writer: CacheWriter, model: Callable[[Tensor], Any], count: int = 1000) -> list[int]:
    """Put the logits of some batches; their views."""
    views = []
    for batch in writer.batches(32):
        writer.put(batch, model(batch.images))
        views.append(batch.view)
        if len(views) == count:
            break
    return views


def test_a_timm_teacher_by_hand_makes_the_cache_of_the_command(
    opened: Open, network: nn.Module, digits_cache: Path
) -> None:
    with opened() as writer:
        assert write(writer, network) == [v for v in range(4) for _ in range(4)]
        result = writer.close()
    assert result.content_id == Cache.open(digits_cache).content_id()
    assert (result.parts_done, result.parts_total, result.views) == (4, 4, 400)
    assert files(Path(result.path)) == files(digits_cache)
    assert write(opened(), network) == []


def test_a_network_of_the_members_identity_continues_its_cache(
    opened: Open, network: nn.Module, mutable_cache: Path
) -> None:
    (mutable_cache / Part(2, 0).record).unlink()
    writer = opened(str(mutable_cache), teacher=Cache.open(mutable_cache).spec.teacher)
    assert write(writer, network) == [2] * 4


def test_a_batch_names_its_views(opened: Open, digits_cache: Path, digits: Path) -> None:
    writer, cache = opened(values=VALUES | {"views.mixup": 0.0}), open_reader(digits_cache)
    batch = next(iter(writer.batches(20)))
    assert (len(batch), batch.view, batch.keys) == (20, 0, cache.keys[:20])
    assert batch.labels.tolist() == cache.labels[:20, None].tolist()
    pixels = torch.from_numpy(cache.images(digits)[batch.keys[7], 0])
    spec = writer.store.spec.teacher
    expected = (pixels / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    torch.testing.assert_close(batch.images[7].permute(1, 2, 0), expected, atol=1e-5, rtol=0)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


OF_JAX = """
import sys, jax, numpy as np, kdcache
weight_PC = np.load("weight.npy")
function = jax.jit(lambda x: x.reshape(len(x), -1) @ weight_PC)
info = kdcache.TeacherInfo("linear", 32 * "ab", 10, architecture="jax")
values = {"num_views": 4, "views.mixup": 0.5, "views_per_decode": 1}
seen, options = [], {"values": values, "device": "cpu", "force": True, "progress": False}
with kdcache.create("c.zarr", recipe="digits", data=sys.argv[1], teacher=info, **options) as writer:
    for batch in writer.batches(64):
        seen.append(batch.images.numpy().reshape(len(batch), -1) @ weight_PC)
        logits = function(batch.images.numpy())
        writer.put(batch, logits.astype("bfloat16") if batch.view == 3 else logits)
np.save("seen.npy", np.concatenate(seen))
"""


def test_a_function_of_jax_as_teacher(digits: Path, tmp_path: Path) -> None:
    """In a process of its own: JAX's threads make every later fork of this one a warning."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("takes jax")
    weight_PC = np.random.default_rng(0).normal(0, 0.05, (3 * 32 * 32, 10)).astype(np.float32)
    np.save(tmp_path / "weight.npy", weight_PC)
    command = [sys.executable, "-c", OF_JAX, str(digits)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=PATIENCE)
    cache, seen = open_reader(tmp_path / "c.zarr"), np.load(tmp_path / "seen.npy")
    expected = torch.from_numpy(seen).softmax(1).reshape(4, 100, 10).numpy()
    for view, allowed in enumerate([0.02, 0.02, 0.02, 0.05]):
        assert abs(cache.targets(view).dense() - expected[view]).max() < allowed
    assert cache.spec.teacher.weights_sha256 == "sha256:" + 32 * "ab"


@pytest.mark.parametrize("kind", [np.float64, np.float16, list, torch.bfloat16, torch.float64])
def test_logits_of_any_real_type(opened: Open, network: nn.Module, kind: Any) -> None:
    def converted(x: Tensor) -> Any:
        logits = network(x)
        if isinstance(kind, torch.dtype):
            return logits.to(kind).requires_grad_()
        return logits.tolist() if kind is list else logits.numpy().astype(kind)

    values = VALUES | {"num_views": 1}
    write(opened(values=values), converted)
    write(opened("plain.zarr", values=values), network)
    found, plain = (
        open_reader(opened(n, values=values).store.name) for n in ("c.zarr", "plain.zarr")
    )
    assert abs(found.targets(0).dense() - plain.targets(0).dense()).max() < 0.05


def nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[5, 3] = float("nan")
    return x


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda x: x[:-1], UsageError, r"shape \[31, 10\] for view 0 of 'a' … 'b' \(32 samples\)"),
        (lambda x: x[:, :9], UsageError, r"shape \[32, 9\] .* expected \[32, 10\]"),
        (nan, NonFinite, r"NaN or Inf in fp32 for view 0 of 'c' \(1 of 32 in its batch\)"),
        (lambda x: 1e300 * x.double(), NonFinite, r"view 0 of 'a' \(32 of 32"),
        (
            lambda x: x.softmax(1),
            TeacherError,
            r"outputs of the teacher local:test_resnet are prob",
        ),
        (lambda x: x + 0j, UsageError, r"logits of the type torch\.complex64"),
        (lambda x: [None] * 32, UsageError, r"logits of the type object"),
        (lambda x: x > 0, UsageError, r"logits of the type torch\.bool"),
    ],
)
def test_logits_that_cannot_be_are_refused_and_put_again(
    opened: Open,
    network: nn.Module,
    digits_cache: Path,
    change: Callable[[Tensor], Any],
    kind: type[KdcacheError],
    message: str,
) -> None:
    writer, keys = opened(), open_reader(digits_cache).keys
    for letter, row in (("a", 0), ("b", 31), ("c", 5)):
        message = message.replace(f"'{letter}'", re.escape(repr(keys[row])))
    batch = next(batches := iter(writer.batches(32)))
    with pytest.raises(kind, match=message):
        writer.put(batch, change(network(batch.images)))
    writer.put(batch, network(batch.images))
    for batch in batches:
        writer.put(batch, network(batch.images))
    assert files(Path(writer.store.name)) == files(digits_cache)


def test_each_batch_is_put_once_in_its_loop(opened: Open, network: nn.Module) -> None:
    writer, other = opened(), opened("other.zarr")
    batches = iter(writer.batches(32))
    first, foreign = next(batches), next(kept := iter(other.batches(32)))
    with pytest.raises(UsageError, match=r"does not wait for logits.*of another writer"):
        writer.put(foreign, network(foreign.images))
    writer.put(first, network(first.images))
    with pytest.raises(UsageError, match="has its logits already"):
        writer.put(first, network(first.images))
    second = next(batches)
    with pytest.raises(UsageError, match="it had them before"):
        writer.put(first, network(first.images))
    with pytest.raises(UsageError, match=r"view 0 of .* got no logits\. Call put before the next"):
        next(batches)
    with pytest.raises(UsageError, match="its loop has ended"):
        writer.put(second, network(second.images))
    assert kept.close() is None  # type: ignore[attr-defined]


def test_a_closed_writer_keeps_whole_parts_and_takes_no_more(
    opened: Open, network: nn.Module
) -> None:
    writer = opened()
    batches = writer.batches(32)
    for _ in range(5):
        writer.put(batch := next(batches), network(batch.images))
    result = writer.close()
    assert (result.parts_done, result.parts_total) == (1, 4)
    assert writer.close() == result
    with pytest.raises(UsageError, match="its loop has ended"):
        writer.put(batch, network(batch.images))
    with pytest.raises(UsageError, match=r"the writer of .* is closed"):
        writer.batches()
    assert next(batches, None) is None


def test_a_new_iteration_takes_up_what_is_missing(
    opened: Open, network: nn.Module, digits_cache: Path
) -> None:
    writer = opened()
    assert write(writer, network, 4) == [0] * 4  # the last batch of a part, and the end
    assert write(writer, network, 6) == [1] * 4 + [2] * 2
    assert write(opened(), network) == [2] * 4 + [3] * 4
    assert files(Path(writer.store.name)) == files(digits_cache)


def test_tasks_share_the_parts(opened: Open, network: nn.Module, digits_cache: Path) -> None:
    first, second = opened(task=0, tasks=2), opened(task=1, tasks=2)
    together = zip(first.batches(32), second.batches(32), strict=True)
    for one, two in together:
        first.put(one, network(one.images))
        second.put(two, network(two.images))
    assert first.close().parts_done == second.close().parts_done == 4
    assert files(Path(first.store.name)) == files(digits_cache)
    with pytest.raises(UsageError, match=r"--task 2 is none of 0\.\.1"):
        opened(task=2, tasks=2)


def test_errors_of_the_threads_reach_the_loop(
    opened: Open, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage1, "PAUSE_SECONDS", 0.0)
    writer, render = opened(), ViewRenderer.render

    def broken(self: ViewRenderer, number: int, wanted: Any) -> None:
        if number == 37 and wanted[0][0] is not None:
            raise OSError("unreadable")
        render(self, number, wanted)

    monkeypatch.setattr(ViewRenderer, "render", broken)
    with pytest.raises(CacheIncomplete, match=r"parts 0-3: OSError: unreadable"):
        write(writer, network)
    monkeypatch.setattr(ViewRenderer, "render", render)
    monkeypatch.setattr(Cache, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(writer, network)
    write(writer, network, 4)
    with pytest.raises(ZeroDivisionError):
        writer.close()


def test_an_error_in_the_loop_ends_the_threads_and_keeps_whole_parts(
    opened: Open, network: nn.Module
) -> None:
    with pytest.raises(ZeroDivisionError), opened() as writer:
        for number, batch in enumerate(writer.batches(32)):
            writer.put(batch, network(batch.images))
            if number == 5:
                raise ZeroDivisionError
    assert opened().close().parts_done == 1


def test_teachers_and_recipes_that_cannot_be(opened: Open, network: nn.Module) -> None:
    info, zeros = TeacherInfo, 64 * "0"
    for teacher, kind, message in (
        (info("x", "abc", 10), TeacherError, r"weights_sha256='abc' is no SHA-256\. Pass 64"),
        (info("x", zeros, 10, std=(0, 0, 0)), TeacherError, "std must be positive"),
        (info("x", zeros, 10, mean=(0, 0)), TeacherError, "mean: expected 3 values"),
        (info("x", zeros, 10, precision="int8"), TeacherError, "'int8' is not one of"),  # type: ignore[arg-type]
        (info("x", zeros, 12), CacheMismatch, "has 10 classes, the teacher predicts 12"),
    ):
        with pytest.raises(kind, match=message):
            opened(teacher=teacher)
    with pytest.raises(TeacherError, match="Linear has no architecture in a pretrained_cfg"):
        TeacherInfo.of(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="batch_size=0 must be positive"):
        opened().batches(0)
    with pytest.raises(UsageError, match="unknown key 'num_view'"):
        opened(values={"num_view": 3})
    write(opened(), network, 4)
    with pytest.raises(CacheMismatch, match=r"teacher\.precision: 'fp32' against 'bf16'"):
        opened(teacher=TeacherInfo.of(network, "local:test_resnet", "bf16"))


PROGRAM = """
import builtins, os, signal, sys, timm, torch, kdcache
out, data, teacher, end = sys.argv[1:]
torch.set_num_threads(1)
model = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval().requires_grad_(False)
values = {"num_views": 4, "views.mixup": 0.5, "views_per_decode": 1}
info = kdcache.TeacherInfo.of(model, "local:test_resnet")
writer = kdcache.create(out, recipe="digits", values=values, data=data, teacher=info, device="cpu")
batches = builtins.batches = writer.batches(32)  # which Python clears last of all
for number, batch in enumerate(batches):
    writer.put(batch, model(batch.images))
    if number == 9:
        if end == "exit":
            break
        os.kill(os.getpid(), int(end))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, "exit"])
def test_a_program_that_ends_without_close(
    opened: Open, network: nn.Module, tmp_path: Path, digits: Path, teacher: Path, end: Any,
    digits_cache: Path,
) -> None:  # fmt: skip
    code = "exit" if end == "exit" else str(int(end))
    arguments = [sys.executable, "-c", PROGRAM, tmp_path / "c.zarr", digits, teacher, code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == (0 if end == "exit" else -end), done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    interrupted = ["Traceback (most recent call last):", "KeyboardInterrupt"]
    assert lines == (interrupted if end == signal.SIGINT else [])
    again = opened()
    found = write(again, network)
    assert 8 <= len(found) <= 16
    there = files(Path(again.store.name))
    if end == signal.SIGKILL:  # in the middle of a file; the next command removes it after an hour
        there = {name: data for name, data in there.items() if not name.endswith(".partial")}
    assert there == files(digits_cache)


@pytest.mark.gpu
def test_pictures_and_logits_on_a_gpu(opened: Open, network: nn.Module, digits_cache: Path) -> None:
    with opened(device="cuda") as writer:
        on_gpu = network.to("cuda")
        assert len(write(writer, on_gpu)) == 16
        network.to("cpu")
    expected, found = open_reader(digits_cache), open_reader(writer.store.name)
    for view in range(4):
        difference = abs(found.targets(view).dense() - expected.targets(view).dense())
        assert difference.sum(1).max() < 0.05


def test_pictures_on_a_device_with_streams(
    opened: Open, network: nn.Module, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the pictures are made there; targets come back from wherever the logits are."""
    values = VALUES | {"num_views": 1, "views.mixup": 0.0}
    write(opened("host.zarr", values=values), network)
    monkeypatch.setattr(writers, "select", lambda *_: CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "fake")
    on_gpu = opened(values=values)
    write(on_gpu, network)
    assert gpu.copies
    host = opened("host.zarr", values=values)
    assert files(Path(on_gpu.store.name)) == files(Path(host.store.name))


def test_a_batch_is_printed_in_a_line(opened: Open) -> None:
    batch = WriterBatch(torch.zeros(2, 3, 4, 4), 1, ("a", "b"), np.zeros((2, 1), np.int64))
    assert str(batch) == "view 1 of 'a' … 'b' (2 samples)"
