"""Turns a call into the bytes that it needs beyond what was there before: its result and its scratch space at the peak.

On a GPU torch's allocator counts. On a CPU the kernel does, because scratch space of generated kernels is no allocation
of torch's: the peak of the process's resident memory is set back just before the call. That needs Linux.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from attncompiler.benchmarks.report import OURS, MemoryLine
from attncompiler.benchmarks.suite import Case
from attncompiler.comparison import Size, caller, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.peers import Refusal, peer
from attncompiler.torch_formulas import Inputs

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What resets the peak, according to proc(5).
_PEAK = "5"


def why_not(device: str) -> str | None:
    """Why memory cannot be measured on this machine, None when it can."""
    if device == "cuda":
        return None
    try:
        _CLEAR.write_text(_PEAK)
        return None if "VmHWM" in _STATUS.read_text() else "the system reports no peak"
    except OSError as error:
        return f"the peak cannot be set back: {error.strerror}"


def extra_peak(call: Callable[[], object], device: str) -> int:
    """Bytes that one run of ``call`` adds at its peak; its result is counted."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    # Freed pages that the allocator keeps would be used again without a trace.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    _CLEAR.write_text(_PEAK)
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def measure(
    case: Case, size: Size, peers: tuple[str, ...], *, device: str, backend: str, training: bool
) -> MemoryLine:
    """The extra peak of our operator and of each peer, of a forward call or of one with its backward."""
    inputs = inputs_for(case.variant, size, device=device)
    if training:
        q, k, v = (x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
        inputs = Inputs(q, k, v, inputs.tensors)
    extra: dict[str, int] = {}
    refusals: dict[str, str] = {}
    with torch.set_grad_enabled(training):
        for name in (OURS, *peers):
            try:
                if training and name == "flex" and device == "cpu":
                    found: Callable[[], torch.Tensor] | Refusal = Refusal(
                        "it has no backward on a CPU"
                    )
                elif name == OURS:
                    found = caller(compile_variant(case.variant, backend=backend), inputs)
                else:
                    found = peer(name, case.variant, inputs)
                if isinstance(found, Refusal):
                    refusals[name] = found.reason
                    continue
                step = _step(found, inputs) if training else found
                # The first call builds, and fills pools that stay.
                step()
                extra[name] = extra_peak(step, device)
            except Exception as error:  # a peer that runs out of memory is a result too
                refusals[name] = f"{type(error).__name__}: {error}"[:200]
    return MemoryLine(case.name, size, training, extra, refusals)


def _step(call: Callable[[], torch.Tensor], inputs: Inputs) -> Callable[[], object]:
    weights = torch.ones_like(inputs.q)
    return lambda: torch.autograd.grad(call(), (inputs.q, inputs.k, inputs.v), weights)


def _resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
