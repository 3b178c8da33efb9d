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
from attncompiler.peers import Attention, Refusal, peer
from attncompiler.timing import Timing, interleaved
from attncompiler.torch_formulas import Inputs

# Above this many score elements the float64 reference is computed for three blocks of rows only.
_WHOLE_REFERENCE = 2**22
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


Maker = Callable[[Inputs], Attention | Refusal]


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
    others: Mapping[str, Maker] | None = None,
) -> list[Row]:
    """Measure our kernel and the peers in turns; our row comes first. Without ``check`` errors stay NaN.

    With ``training`` a call is a forward and a backward pass that gives the gradients of q, k and v. ``others`` make
    more calls from the inputs, by name. A peer that fails is a row with the reason.
    """
    operator = compile_variant(variant, backend=backend)
    if training:
        q, k, v = (x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
        inputs = Inputs(q, k, v, inputs.tensors)
    makers: dict[str, Maker] = {"attncompiler": lambda given: caller(operator, given)}
    for name in peers:
        makers[name] = _peer(name, variant, training)
    makers.update(others or {})
    references = list(_references(variant, inputs, training=training)) if check else []
    calls: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    refused: list[Row] = []
    with torch.set_grad_enabled(training):
        for name, make in makers.items():
            try:
                found = make(inputs)
                if isinstance(found, Refusal):
                    refused.append(Row(name, refusal=found.reason))
                    continue
                call = _trained(found, inputs) if training else found
                errors[name] = _error(call().detach(), references)
                calls[name] = call
            # Whatever a peer raises, out of memory included, is its own affair; our own kernel has to run.
            except Exception as error:
                if name == "attncompiler":
                    raise
                refused.append(Row(name, refusal=_first_line(error)))
        device = inputs.q.device.type
        timings = interleaved(calls, rounds=rounds, budget=budget, device=device, warm=True)
    ours = timings["attncompiler"].median
    rows = [Row(name, t, t.median / ours, errors[name]) for name, t in timings.items()]
    return rows + refused


def caller(operator: Callable[..., Tensor], inputs: Inputs) -> Attention:
    """The call of an operator of ours with these inputs."""
    return lambda: operator(inputs.q, inputs.k, inputs.v, **inputs.tensors)


def _peer(name: str, variant: Variant, training: bool) -> Maker:
    def make(inputs: Inputs) -> Attention | Refusal:
        if training and name == "flex" and not inputs.q.is_cuda:
            return Refusal("it has no backward on a CPU")
        return peer(name, variant, inputs)

    return make


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


def _trained(call: Attention, inputs: Inputs) -> Attention:
    """A call with its backward; the result is the gradient of q."""
    leaves = (inputs.q, inputs.k, inputs.v)
    weights = _loss_weights(inputs)
    return lambda: torch.autograd.grad(call(), leaves, weights)[0]


def _loss_weights(inputs: Inputs) -> Tensor:
    """The gradient of the output: normal random numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(1)
    shape = (*inputs.q.shape[:3], inputs.v.shape[3])
    return torch.randn(shape, generator=generator).to(inputs.q)


def _error(out: Tensor, references: Sequence[tuple[slice, Tensor]]) -> float:
    """The largest absolute error on the rows of the references; NaN without any."""
    errors = [(out[:, :, rows].double() - exact).abs().max().item() for rows, exact in references]
    return max(errors, default=float("nan"))


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
