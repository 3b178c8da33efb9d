"""Turns one variant and one size into rows of a table: time, ratio and error of our kernel and of its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.frontend import trace
from attncompiler.peers import Refusal, peer
from attncompiler.timing import Timing, interleaved
from attncompiler.torch_formulas import Inputs

# Above this many score elements the float64 reference is computed for three blocks of rows only.
_WHOLE_REFERENCE = 2**24
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Size:
    """A call's extents and element type."""

    length: int = 2048
    head_dim: int = 64
    dtype: str = "float32"
    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None

    def __str__(self) -> str:
        groups = "" if self.kv_heads in (None, self.heads) else f" G={self.kv_heads}"
        return (
            f"{self.dtype} B={self.batch} H={self.heads}{groups} S={self.length} D={self.head_dim}"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation's result; ``refusal`` says why there is none.

    ``ratio`` is its median time over ours: above 1 we are faster. ``error`` is the largest absolute error against
    float64.
    """

    name: str
    timing: Timing | None = None
    ratio: float = float("nan")
    error: float = float("nan")
    refusal: str = ""


def inputs_for(variant: Variant, size: Size, seed: int = 0) -> Inputs:
    """Normal random q, k, v and the variant's own sample tensors."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, size.dtype)
    groups = size.kv_heads or size.heads
    shape = (size.length, size.head_dim)
    q, k, v = (
        torch.randn(size.batch, heads, *shape, generator=generator).to(dtype)
        for heads in (size.heads, groups, groups)
    )
    sizes = Inputs(q, k, v, {}).sizes
    return Inputs(q, k, v, variant.sample({**sizes, "q_start": 0}, generator))


def compare(
    variant: Variant,
    inputs: Inputs,
    peers: Sequence[str],
    *,
    backend: str = "auto",
    rounds: int = 7,
    budget: float = 60.0,
    check: bool = True,
) -> list[Row]:
    """Measure our kernel and the peers in turns; our row comes first. Without ``check`` errors stay NaN."""
    operator = compile_variant(variant, backend=backend)
    calls: dict[str, Callable[[], Tensor]] = {
        "attncompiler": lambda: operator(inputs.q, inputs.k, inputs.v, **inputs.tensors)
    }
    refused: list[Row] = []
    with torch.no_grad():
        for name in peers:
            found = peer(name, variant, inputs)
            if isinstance(found, Refusal):
                refused.append(Row(name, refusal=found.reason))
            else:
                calls[name] = found
        errors = _errors(variant, inputs, calls) if check else dict.fromkeys(calls, float("nan"))
        timings = interleaved(calls, rounds=rounds, budget=budget)
    ours = timings["attncompiler"].median
    rows = [Row(name, t, t.median / ours, errors[name]) for name, t in timings.items()]
    return rows + refused


def _errors(
    variant: Variant, inputs: Inputs, calls: dict[str, Callable[[], Tensor]]
) -> dict[str, float]:
    """Largest absolute error of each call against the oracle, on all rows or on three blocks of rows."""
    references = list(_references(variant, inputs))
    errors = {}
    for name, call in calls.items():
        out = call()
        errors[name] = max(
            (out[:, :, rows].double() - exact).abs().max().item() for rows, exact in references
        )
    return errors


def _references(variant: Variant, inputs: Inputs) -> Iterator[tuple[slice, Tensor]]:
    length = inputs.q.shape[2]
    elements = inputs.q.shape[0] * inputs.q.shape[1] * length * inputs.k.shape[2]
    # A block of rows is a call with q_start, unless something else is laid out along the queries.
    by_rows = getattr(variant, "prepare", None) is None and not any(
        "q" in tensor.axes for tensor in trace(variant).tensors.values()
    )
    starts = range(0, length, length)
    block = length
    if elements > _WHOLE_REFERENCE and by_rows:
        starts, block = range(0, length, max((length - _BLOCK) // 2, 1)), _BLOCK
    for start in starts:
        rows = slice(start, start + block)
        yield (
            rows,
            attncompiler.oracle.attention(
                variant,
                inputs.q[:, :, rows],
                inputs.k,
                inputs.v,
                q_start=start,
                tensors=dict(inputs.tensors),
            ).out,
        )
