"""Streams, graphs, torch.compile, devices and mistakes on CUDA: calls mean the same whatever runs around them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from cuda_calls import packed

import attncompiler
from attncompiler.dsl import Boxes, Variant, causal, clamp, document
from attncompiler.dsl import Tensor as Input
from attncompiler.runtime.errors import DeviceError, DtypeError


class Documents(Variant):
    """Lists of tiles are planned from the ids."""

    ids = Input("k", dtype="int")

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)


class Biased(Variant):
    """A table that all programs add to."""

    table = Input("h", 9)

    def score(self, s: Any, at: Any) -> Any:
        return s + self.table[at.h, clamp(at.q - at.k, -4, 4) + 4]

    def mask(self, at: Any) -> Any:
        return causal(at)


class Boxed(Variant):
    """Tokens of a square, worked on in boxes."""

    layout = Boxes((16, 16), (4, 4))

    def mask(self, at: Any) -> Any:
        rows, columns = at.q // 16 - at.k // 16, at.q % 16 - at.k % 16
        return (abs(rows) < 4) & (abs(columns) < 4)


def ids_of(device: torch.device, size: int, length: int = 256) -> torch.Tensor:
    return torch.arange(length, device=device) // size


def test_another_stream(device: torch.device, backend: str) -> None:
    op, qkv = packed(Documents, device, backend)
    wanted = op(*qkv, ids=ids_of(device, 60))
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)  # what is launched on the stream must wait for it
        moved = [x * 1 for x in qkv]
        found = op(*moved, ids=ids_of(device, 60))
    torch.cuda.current_stream(device).wait_stream(stream)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("backward", [False, True])
def test_a_graph_is_replayed_on_other_inputs(
    device: torch.device, backend: str, backward: bool
) -> None:
    """Tiles are planned anew in each replay."""
    op, qkv = packed(Documents, device, backend)
    qkv = [x.requires_grad_(backward) for x in qkv]
    ids = ids_of(device, 60)

    def step() -> list[torch.Tensor]:
        out = op(*qkv, ids=ids)
        if not backward:
            return [out]
        return [out.detach(), *torch.autograd.grad(out.square().sum(), qkv)]

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for size in (60, 17, 200):
        ids.copy_(ids_of(device, size))
        with torch.no_grad():
            for x in qkv:
                x.normal_()
        graph.replay()
        for found, wanted in zip(captured, step(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_graph_with_a_layout(device: torch.device, backend: str) -> None:
    """The order of the tokens is on the device when the graph is captured."""
    op, qkv = packed(Boxed, device, backend)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        op(*qkv)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(*qkv)
    for x in qkv:
        x.normal_()
    graph.replay()
    torch.testing.assert_close(captured, op(*qkv), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tracer", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(device: torch.device, backend: str, tracer: str) -> None:
    torch.compiler.reset()
    op, qkv = packed(Biased, device, backend)
    table = torch.randn(4, 9, device=device, requires_grad=True)

    def step(q: Any, k: Any, v: Any) -> Any:
        return op(q * 2, k, v, table=table).square().sum()

    eager, compiled = step(*qkv), torch.compile(step, fullgraph=True, backend=tracer)(*qkv)
    torch.testing.assert_close(compiled, eager)
    (wanted,), (found,) = (torch.autograd.grad(x, table) for x in (eager, compiled))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_gradients_of_shared_tensors_repeat_to_the_bit(device: torch.device, backend: str) -> None:
    op, qkv = packed(Biased, device, backend, 1024)
    table = torch.randn(4, 9, device=device, requires_grad=True)
    qkv = [x.requires_grad_() for x in qkv]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(op(*qkv, table=table).square().sum(), [*qkv, table])

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(gradients(), first, strict=True))


def test_a_second_device(device: torch.device, backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    op, qkv = packed(Documents, device, backend)
    other = torch.device("cuda", 1 - (device.index or 0))
    ids = ids_of(device, 60)
    found = op(*(x.to(other) for x in qkv), ids=ids.to(other))
    assert found.device == other
    torch.testing.assert_close(found.to(device), op(*qkv, ids=ids))


def test_the_same_operator_runs_on_the_cpu_too(device: torch.device) -> None:
    op = attncompiler.compile(Documents)
    q, k, v = (torch.randn(1, 2, 100, 16) for _ in range(3))
    ids = torch.arange(100) // 30
    on_device = op(*(x.to(device) for x in (q, k, v)), ids=ids.to(device))
    torch.testing.assert_close(on_device.cpu(), op(q, k, v, ids=ids), rtol=1e-4, atol=1e-5)


def test_mistakes_are_refused_before_a_launch(device: torch.device, backend: str) -> None:
    op, (q, k, v) = packed(Documents, device, backend)
    ids = ids_of(device, 60)
    with pytest.raises(DeviceError, match="ids is on cpu"):
        op(q, k, v, ids=ids.cpu())
    with pytest.raises(DeviceError, match="k is on cpu"):
        op(q, k.cpu(), v, ids=ids)
    with pytest.raises(DtypeError, match="float64"):
        op(q.double(), k.double(), v.double(), ids=ids)
    with pytest.raises(DtypeError, match="ids"):
        op(q, k, v, ids=ids.float())
    torch.cuda.synchronize(device)


SAMPLE = """
import torch, attncompiler
from attncompiler.dsl import Tensor, Variant, causal, clamp, document

class Sample(Variant):
    ids = Tensor("k", dtype="int")
    table = Tensor("h", 9)
    def score(self, s, at): return s + self.table[at.h, clamp(at.q - at.k, -4, 4) + 4]
    def mask(self, at): return causal(at) & document(at, self.ids)

op = attncompiler.compile(Sample, backend="triton")
for dtype in (torch.float32, torch.bfloat16):
    q, k, v = (torch.randn(1, 2, 131, 31, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    table = torch.randn(2, 9, device="cuda", requires_grad=True)
    op(q, k, v, ids=torch.arange(131, device="cuda") // 50, table=table).float().sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_nothing_is_read_or_written_out_of_bounds(tool: str, tmp_path: Any) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    (tmp_path / "sample.py").write_text(SAMPLE)
    run = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable]
    done = subprocess.run([*run, str(tmp_path / "sample.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
