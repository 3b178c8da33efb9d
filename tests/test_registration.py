"""Operators as torch ops: opcheck, torch.compile, torch.export, and a fresh process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import attncompiler
from attncompiler.dsl import Variant, causal
from attncompiler.runtime.toolchain import find_toolchain
from tests.test_autograd import CALLS, OPERATORS, Full, Plain, Prepared, gradients, leaves

WITHOUT_PREPARE = [v for v in CALLS if v is not Prepared]
OTHER_LENGTHS = ((5, 9), (7, 7), (33, 40), (6, 100))


def op_arguments(variant: type[Variant]) -> list[Any]:
    """The arguments of a forward op up to ``stats`` and ``train``."""
    op, given = OPERATORS[variant], leaves(variant)
    kernel = op.compilation.kernel
    numbers = [op._params[p.name] for p in kernel.params]
    return [
        *(given[n] for n in ("q", "k", "v", *(t.name for t in kernel.tensors))),
        given.get("q_start", 0),
        0.3,
        *numbers,
    ]


@pytest.mark.parametrize("variant", WITHOUT_PREPARE)
def test_opcheck(variant: type[Variant]) -> None:
    ops, arguments = OPERATORS[variant]._registered, op_arguments(variant)
    for stats, train in ((False, False), (False, True), (True, True)):
        torch.library.opcheck(ops.forward, (*arguments, stats, train))
    with torch.no_grad():
        out, kept, saved, value = ops.forward(*arguments, True, True)
    plain = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    wants = sum(isinstance(x, Tensor) and x.is_floating_point() for x in plain)
    value = value if value.numel() else out
    for grad_kept in (None, torch.randn_like(kept)):
        for wanted in ([True] * wants, [i % 2 == 0 for i in range(wants)]):
            call = (torch.randn_like(out), grad_kept, *plain, saved, value, wanted)
            torch.library.opcheck(ops.backward, call)


def test_the_schema_names_what_the_variant_declares() -> None:
    op = OPERATORS[Full]
    schema = str(op._registered.forward._schema)
    assert schema.startswith("attncompiler::Full_")
    parts = ["Tensor tensor_bias", "Tensor tensor_ids", "float param_gain"]
    for part in (*parts, "SymInt param_window", "bool param_flip"):
        assert part in schema


def test_one_program_is_one_op() -> None:
    """The same class compiled again and with other values shares its op; another formula of that name does not."""
    again = attncompiler.compile(Full(gain=3.0))
    assert again._registered is OPERATORS[Full]._registered
    other = attncompiler.compile(type("Full", (Plain,), {"mask": lambda self, at: at.k < at.q}))
    assert other._registered.forward is not again._registered.forward


# torch.compile.


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("variant", CALLS)
def test_compiles_in_one_graph(variant: type[Variant], backend: str) -> None:
    torch.compiler.reset()
    op = OPERATORS[variant]

    def step(given: dict[str, Any]) -> Tensor:
        given = given | {"q": given["q"] * 2}
        out, stats = op(**given, return_stats=True)
        return out.square().sum() + sum(
            torch.where(s.isfinite(), s, 0.0).sum() for s in stats.values()
        )

    eager, compiled = leaves(variant), leaves(variant)
    run = torch.compile(step, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(run(compiled), step(eager))
    losses = step(eager), run(compiled)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    assert set(gradients(compiled)) == set(gradients(eager))
    for name, x in gradients(compiled).items():
        torch.testing.assert_close(x, gradients(eager)[name], rtol=1e-4, atol=1e-5)


def test_lengths_and_integers_stay_symbolic(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, and one backward of it, serves every length, window and start; no kernel is built again."""
    torch.compiler.reset()
    op, counter = OPERATORS[Full], CompileCounterWithBackend("aot_eager")

    def run(q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Tensor], window: int) -> Tensor:
        start = k.shape[2] - q.shape[2]
        return op(q, k, v, **rest, window=window, q_start=start)

    def drawn(rows: int, keys: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        q = torch.randn(3, 4, rows, 8, requires_grad=True)
        k, v = torch.randn(3, 2, keys, 8), torch.randn(3, 2, keys, 6)
        rest = {
            "sink": torch.randn(4),
            "bias": torch.randn(4, rows, keys),
            "gate": torch.randn(3, rows, 6),
            "ids": torch.randint(0, 2, (3, keys)),
        }
        return q, k, v, rest

    run(*drawn(5, 7), 3).sum().backward()  # builds the two kernels
    monkeypatch.setattr(subprocess, "run", None)
    compiled = torch.compile(run, fullgraph=True, backend=counter, dynamic=True)
    for window, (rows, keys) in enumerate(OTHER_LENGTHS, 3):
        q, k, v, rest = drawn(rows, keys)
        found, wanted = compiled(q, k, v, rest, window), run(q, k, v, rest, window)
        torch.testing.assert_close(found, wanted)
        grads = [torch.autograd.grad(x.square().sum(), q) for x in (found, wanted)]
        torch.testing.assert_close(*grads)
    assert counter.frame_count == 2, "a forward and a backward"


def test_mistakes_keep_their_text_in_a_trace() -> None:
    torch.compiler.reset()
    given = leaves(Full) | {"bias": torch.zeros(4, 7, 8)}
    compiled = torch.compile(OPERATORS[Full], fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"bias: axis 2 \(k\) has extent 8(?s:.*)is 9"):
        compiled(**given)


def test_autocast_is_seen_by_a_trace() -> None:
    torch.compiler.reset()
    given = leaves(Prepared)
    compiled = torch.compile(OPERATORS[Prepared], fullgraph=True, backend="aot_eager")
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert compiled(**given).dtype == dtype


# torch.export.


class Block(nn.Module):
    """A layer around an operator, or around the module of one."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind()
        return self.attention(q, k, v).transpose(1, 2).flatten(2)


class Recomputed(nn.Module):
    """A module whose backward runs its forward again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *x: Tensor) -> Any:
        return checkpoint(self.inner, *x, use_reentrant=False)


class Sunk(Variant):
    """Small, causal, with a learnable number a head."""

    sink = attncompiler.dsl.Tensor("h")

    def mask(self, at: Any) -> Any:
        return causal(at)

    def score(self, s: Any, at: Any) -> Any:
        return s + self.sink[at.h] * (at.q - at.k)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_compile_whole_at_every_length(checkpointed: bool) -> None:
    """Two layers with their projections, views and, if asked for, recomputation: one graph, the same gradients."""
    torch.compiler.reset()
    op = attncompiler.compile(Sunk)
    modules = [op.module(sink=torch.full((4,), 0.1 * i)) for i in range(2)]

    eager = nn.Sequential(*(Block(Recomputed(m) if checkpointed else m) for m in modules))
    compiled = torch.compile(eager, fullgraph=True, dynamic=True)
    for length in (10, 17, 33):
        x = torch.randn(2, length, 32)
        found, wanted = compiled(x), eager(x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        grads = [
            torch.autograd.grad(y.square().sum(), list(eager.parameters())) for y in (found, wanted)
        ]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_captured_tensors_of_a_closure_learn_in_a_trace() -> None:
    torch.compiler.reset()
    table = torch.randn(9, 9, requires_grad=True)

    class Closed(Variant):
        def score(self, s: Any, at: Any) -> Any:
            return s + table[at.q, at.k]

    op, (q, k, v) = attncompiler.compile(Closed), torch.randn(3, 1, 2, 9, 8)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(q, k, v).square().sum(), table) for f in (op, compiled)]
    assert grads[0][0].any()
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", ["module", "operator"])
def test_exports_run_and_come_back_from_a_file(form: str, strict: bool, dynamic: bool) -> None:
    op = attncompiler.compile(Sunk)
    sink = torch.linspace(-1, 1, 4)
    block = Block(op.module(sink=sink) if form == "module" else lambda *x: op(*x, sink=sink))
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},) if dynamic else None
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its serialiser
        exported = torch.export.export(
            block, (torch.randn(2, 10, 32),), dynamic_shapes=shapes, strict=strict
        )
        torch.export.save(exported, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
    x = torch.randn(*((5, 33) if dynamic else (2, 10)), 32)
    torch.testing.assert_close(loaded(x), block(x))
    loaded(x).square().sum().backward()
    block(x).square().sum().backward()
    torch.testing.assert_close(
        loaded.project.weight.grad, block.project.weight.grad, rtol=1e-4, atol=1e-5
    )


# A fresh process.

FORMULA = """
from attncompiler.dsl import Tensor, Variant, causal

class Sunk(Variant):
    sink = Tensor("h")
    def mask(self, at):
        return causal(at)
    def score(self, s, at):
        return s + self.sink[at.h] * (at.q - at.k)
"""
SCRIPT = """
import os, sys, torch, attncompiler
from formula import Sunk

op = attncompiler.compile(Sunk)
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 9, 8)
sink = torch.zeros(2, requires_grad=True)
out = op(q, k, v, sink=sink)
out.square().sum().backward()
exported = sys.argv[1]
if os.path.exists(exported):
    again = torch.export.load(exported).module()(q, k, v)
    assert torch.equal(again, out)
else:
    class Holder(torch.nn.Module):
        def forward(self, q, k, v):
            return op(q, k, v, sink=torch.zeros(2))
    torch.export.save(torch.export.export(Holder(), (q, k, v)), exported)
print(out.sum().item(), sink.grad.sum().item())
"""


def test_a_fresh_process_builds_nothing(tmp_path: Path) -> None:
    """It finds both kernels in the cache, and a graph exported by another process finds its op."""
    log, wrapper = tmp_path / "log", tmp_path / "compiler"
    real = find_toolchain().command[0]
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "formula.py").write_text(FORMULA)
    environment = os.environ | {
        "CXX": str(wrapper),
        "ATTNCOMPILER_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(tmp_path),
    }
    printed, builds = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "program.pt2")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        builds.append(len(log.read_text().splitlines()))
    assert printed[0] == printed[1]
    assert builds == [4, 4], "forward and backward are compiled and linked once"
