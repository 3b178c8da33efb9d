"""Turns a call of an operator on the CPU into lines about its cost: work, predicted time, roof, measured time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.backends.cpp_context import Specialization
from attncompiler.backends.cpp_schedule import default
from attncompiler.comparison import Size, inputs_for
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.launch import Launcher
from attncompiler.runtime.situation import Situation
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.timing import interleaved
from attncompiler.tuning.cpp_tuner import load_of
from attncompiler.tuning.cpu_cost import Estimate, Load, estimate
from attncompiler.tuning.cpu_device import CpuDevice, cpu_device

if TYPE_CHECKING:
    from attncompiler.runtime.operator import Operator

_ROUNDS = 9


@dataclass(slots=True)
class _Heard:
    """Stands in for a tuner and keeps the arguments of the kernel's call."""

    call: tuple[Any, ...] = ()

    def forward(self, *call: Any) -> None:
        """Before ``Launcher.forward``."""
        self.call = call

    def backward(self, *call: Any, **named: Any) -> None:
        """Never asked: no gradients are wanted."""


def cost_lines(operator: Operator, size: Size) -> Iterator[str]:
    """The cost of a forward call with sample tensors of this size."""
    device = cpu_device(size.dtype)
    load, seconds = _measured(operator, size)
    found = estimate(load, default("forward", device.machine, _specialization(load)), device)
    share = load.visited(64, 64)
    yield f"   Forward of {size}, {_on(device)}:"
    yield f"     {_work(found)}; {100 * share:.0f} % of the pairs lie in visited tiles"
    yield f"     predicted {_time(found.seconds)}, bound by {_BOUNDS[found.bound]}"
    peaks = f"{device.flops / 1e9:.0f} GFLOP/s, {device.bandwidth / 1e9:.1f} GB/s"
    yield f"     the roof, products and memory at the CPU's peaks ({peaks}): {_time(found.roof)}"
    yield f"     measured {_time(seconds)}: {100 * found.roof / seconds:.0f} % of the roof"


_BOUNDS = {
    "compute": "matrix products",
    "bandwidth": "memory bandwidth",
    "exponentials": "exponentials",
    "launch": "the call itself",
}


def _measured(operator: Operator, size: Size) -> tuple[Load, float]:
    """The work of a call, and its seconds: the median of runs."""
    inputs = inputs_for(operator.variant, size)
    launcher = operator._engines.of(inputs.q)
    assert isinstance(launcher, Launcher)
    heard = _Heard()
    before, launcher.tuner = launcher.tuner, heard
    launcher.forget()

    def call() -> object:
        return operator(inputs.q, inputs.k, inputs.v, **inputs.tensors)

    try:
        with torch.no_grad():
            call()
    finally:
        launcher.tuner = before
    with torch.no_grad():
        seconds = median(interleaved({"": call}, rounds=_ROUNDS, budget=20.0)[""].seconds)
    q, k, v, captured, q_start, _, numbers = heard.call[:7]
    kernels = operator._kernels
    types = tuple(str(x.dtype).removeprefix("torch.") for x in captured)
    spec = Specialization(ELEMENT_TYPES[q.dtype], q.shape[3], v.shape[3], types)
    params = {p.name: x for p, x in zip(kernels.signature.params, numbers, strict=True)}
    tensors = {t.name: x for t, x in zip(kernels.signature.tensors, captured, strict=True)}
    situation = Situation(Sizes.of(q, k), q_start, params, tensors)
    return load_of(kernels, "forward", spec, None, situation), seconds


def _specialization(load: Load) -> Specialization:
    return Specialization(load.dtype, load.head_dim, load.value_dim)


def _on(device: CpuDevice) -> str:
    unit = "a matrix unit" if device.machine == "matrix" else f"vectors of {device.vector} bytes"
    return f"{device.threads} threads with {unit}"


def _work(found: Estimate) -> str:
    return (
        f"{found.flops / 1e9:.3g} GFLOP of products, {found.exponentials / 1e6:.3g} million exponentials, "
        f"{found.bytes / 1e6:.3g} MB of operands"
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
