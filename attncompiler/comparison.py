"""Turns one variant and one size into rows of a table: time, ratio and error of our kernel and of its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.frontend import trace
from attncompiler.peers import Refusal, peer
from attncompiler.runtime.operator import Operator
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
    float64, of the output or, in training, of the gradient of q.
    """

    name: str
    timing: Timing | None = None
    ratio: float = float("nan")
    error: float = float("nan")
    refusal: str = ""


def inputs_for(variant: Variant, size: Size, seed: int = 0, device: str = "cpu") -> Inputs:
    """Normal random q, k, v and the variant's own sample tensors, drawn on the CPU and moved to ``device``."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, size.dtype)
    groups = size.kv_heads or size.heads
    shape = (size.length, size.head_dim)
    q, k, v = (
        torch.randn(size.batch, heads, *shape, generator=generator).to(device, dtype)
        for heads in (size.heads, groups, groups)
    )
    sizes = Inputs(q, k, v, {}).sizes
    tensors = variant.sample({**sizes, "q_start": 0}, generator)
    return Inputs(q, k, v, {name: x.to(device) for name, x in tensors.items()})


def compare(
    variant: Variant,
    inputs: Inputs,
    peers: Sequence[str],
    *,
    backend: str = "auto",
    rounds: int = 7,
    budget: float = 60.0,
    check: bool = True,
    training: bool = False,
    others: Mapping[str, Operator] | None = None,
) -> list[Row]:
    """Measure our kernel and the peers in turns; our row comes first. Without ``check`` errors stay NaN.

    With ``training`` a call is a forward and a backward pass that gives the gradients of q, k and v. ``others`` are
    operators of ours that are measured too, by name; one that fails is a row with the reason.
    """
    operator = compile_variant(variant, backend=backend)
    if training:
        q, k, v = (x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
        inputs = Inputs(q, k, v, inputs.tensors)
    forward: dict[str, Callable[[], Tensor]] = {
        "attncompiler": lambda: operator(inputs.q, inputs.k, inputs.v, **inputs.tensors)
    }
    refused: list[Row] = []

    def called(other: Operator) -> Callable[[], Tensor]:
        return lambda: other(inputs.q, inputs.k, inputs.v, **inputs.tensors)

    with torch.set_grad_enabled(training):
        for name, other in (others or {}).items():
            try:
                called(other)()
                forward[name] = called(other)
            except Exception as error:
                refused.append(Row(name, refusal=f"{type(error).__name__}: {error}"[:200]))
        for name in peers:
            found: Callable[[], Tensor] | Refusal
            if training and name == "flex" and not inputs.q.is_cuda:
                found = Refusal("it has no backward on a CPU")
            else:
                found = peer(name, variant, inputs)
            if isinstance(found, Refusal):
                refused.append(Row(name, refusal=found.reason))
            else:
                forward[name] = found
        calls = forward if not training else _trained(forward, inputs)
        exact = _references(variant, inputs, training=training) if check else []
        errors = _errors(list(exact), calls)
        device = inputs.q.device.type
        timings = interleaved(calls, rounds=rounds, budget=budget, device=device)
    ours = timings["attncompiler"].median
    rows = [Row(name, t, t.median / ours, errors[name]) for name, t in timings.items()]
    return rows + refused


def _trained(
    calls: Mapping[str, Callable[[], Tensor]], inputs: Inputs
) -> dict[str, Callable[[], Tensor]]:
    """Each call with its backward; the result is the gradient of q."""
    leaves = (inputs.q, inputs.k, inputs.v)
    weights = _loss_weights(inputs)

    def trained(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(call(), leaves, weights)[0]

    return {name: trained(call) for name, call in calls.items()}


def _loss_weights(inputs: Inputs) -> Tensor:
    """The gradient of the output: normal random numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(1)
    shape = (*inputs.q.shape[:3], inputs.v.shape[3])
    return torch.randn(shape, generator=generator).to(inputs.q)


def _errors(
    references: Sequence[tuple[slice, Tensor]], calls: Mapping[str, Callable[[], Tensor]]
) -> dict[str, float]:
    """Largest absolute error of each call on the rows of the references; NaN without any."""
    errors = {}
    for name, call in calls.items():
        out = call().detach() if references else None
        errors[name] = max(
            (
                (out[:, :, rows].double() - exact).abs().max().item()
                for rows, exact in references
                if out is not None
            ),
            default=float("nan"),
        )
    return errors


def _references(
    variant: Variant, inputs: Inputs, *, training: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their exact results: the output, or in training the gradient of q."""
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
        q = inputs.q[:, :, rows].detach().double().requires_grad_(training)
        out = attncompiler.oracle.attention(
            variant,
            q,
            inputs.k.detach(),
            inputs.v.detach(),
            q_start=start,
            tensors=dict(inputs.tensors),
        ).out
        if training:
            (out,) = torch.autograd.grad(out, (q,), _loss_weights(inputs)[:, :, rows].double())
        yield rows, out
