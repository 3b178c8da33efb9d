"""Every schedule computes the same: tiles, registers and sharing change the speed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from attncompiler.backends.cpp import Specialization
from attncompiler.backends.cpp_cut import Kind, Machine, Schedule
from attncompiler.backends.cpp_schedule import CONDITIONS, default, schedules, space
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.runtime.operator import Operator
from attncompiler.tuning.cpu_device import machine_for

MACHINES: tuple[Machine, ...] = ("matrix", "64", "32", "16")


class _Slopes(Variant):
    slope = Tensor("h", "k")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.slope[at.h, at.k]

    def mask(self, at: Any) -> Any:
        return causal(at)


@pytest.fixture(autouse=True)
def _quick_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", "-O1")


def chosen(kind: Kind, dtype: str) -> Iterator[Schedule]:
    """A few schedules of this machine in which every value of every field occurs, as far as few can."""
    machine = machine_for(dtype)
    spec = Specialization(dtype, 24, 20, ("float32",))
    every = space(kind, machine, spec)
    random.Random(f"{kind} {dtype}").shuffle(every)
    seen: set[tuple[str, int]] = set()
    for cut in every:
        values = {(f.name, getattr(cut, f.name)) for f in fields(cut) if f.name != "machine"}
        if len(values - seen) > 1 or not seen:
            seen |= values
            yield cut


def results(operator: Operator, dtype: str, *, gradients: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    kind: torch.dtype = getattr(torch, dtype)
    q = torch.randn(2, 4, 150, 24).to(kind).requires_grad_()
    k = torch.randn(2, 2, 333, 24).to(kind).requires_grad_()
    v = torch.randn(2, 2, 333, 20).to(kind).requires_grad_()
    slope = torch.randn(4, 333, requires_grad=True)
    out = operator(q, k, v, slope=slope, q_start=170)
    if not gradients:
        return [out]
    return [out, *torch.autograd.grad(out.float().sin().sum(), (q, k, v, slope))]


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_schedules_agree(kind: Kind, dtype: str) -> None:
    backward = kind == "backward"
    wanted = results(compile_variant(_Slopes), dtype, gradients=backward)
    count = 0
    for cut in chosen(kind, dtype):
        operator = compile_variant(_Slopes)
        kernels = operator._kernels

        def fixed(spec: Any, learns: Any, situation: Any, cut: Schedule = cut) -> Schedule | None:
            return cut if (learns is not None) == backward else None

        kernels._tuned = fixed  # type: ignore[method-assign]
        loose = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
        for found, exact in zip(results(operator, dtype, gradients=backward), wanted, strict=True):
            scale = exact.abs().max().item()
            torch.testing.assert_close(found, exact, rtol=loose, atol=loose * scale, msg=str(cut))
        count += 1
    assert count >= 4


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("machine", MACHINES)
def test_spaces_begin_with_the_default(kind: Kind, machine: Machine) -> None:
    spec = Specialization("bfloat16", 64, 64)
    found = space(kind, machine, spec)
    assert found[0] == default(kind, machine, spec)
    assert len(found) == len(set(found)) > 20
    for cut in found:
        assert cut.machine == machine
        assert cut.rows % cut.vectors == 0
        assert cut.keys <= 16, "a tile of scores has room for so many keys beyond its end"
        assert machine != "matrix" or cut.tile % 32 == 0


def test_a_source_prints_the_schedules_of_all_machines() -> None:
    spec = Specialization("float32", 64, 64)
    tuned = Schedule("32", 48, 6, 3, 4, 2, 1, 8)
    found = dict(schedules("forward", spec, tuned))
    assert list(found) == [CONDITIONS[m] for m in MACHINES]
    assert found[CONDITIONS["32"]] == tuned
    assert found[CONDITIONS["64"]] == default("forward", "64", spec)
    double = dict(schedules("forward", replace(spec, dtype="float64"), None))
    assert CONDITIONS["matrix"] not in double
    source = compile_variant(_Slopes)._kernels.source(
        Specialization("float32", 64, 64, ("float32",)), tuned
    )
    assert "TILE = 48, ROW_VECTORS = 6" in source
    assert "TILE = 96, ROW_VECTORS = 4" in source


@pytest.mark.parametrize("machine", ["32", "16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_threads_rows_stay_small(dtype: str, machine: Machine) -> None:
    """What a thread holds of queries and outputs does not grow with the head dimension."""
    for dims in ((64, 64), (128, 128), (512, 512), (16, 512), (512, 16)):
        cut = default("forward", machine, Specialization(dtype, *dims))
        assert 4 <= cut.blocks <= 32
        assert cut.blocks * cut.rows * int(machine) * sum(dims) <= 1 << 20
