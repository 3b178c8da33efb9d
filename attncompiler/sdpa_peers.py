"""Turns a variant into calls of scaled_dot_product_attention: one for each of its backends, and one with a mask.

Its ``attn_mask`` is a whole matrix of queries and keys, true or false or added to the scores: with it SDPA expresses
every mask and every score change that only adds something.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from attncompiler.frontend import Trace
from attncompiler.ir.expr import Call, Const, Dot, Expr, walk
from attncompiler.ir.program import Program
from attncompiler.torch_formulas import Inputs, module

BACKENDS = {
    "sdpa": None,
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa efficient": "EFFICIENT_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
    "sdpa math": "MATH",
}


def backend_call(name: str, inputs: Inputs, causal: bool, scale: float) -> Callable[[], Tensor]:
    """SDPA on one of BACKENDS, ``sdpa`` leaves the choice to torch; a call raises RuntimeError where it is missing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = BACKENDS[name]

    def context() -> AbstractContextManager[None]:
        return nullcontext() if chosen is None else sdpa_kernel(getattr(SDPBackend, chosen))

    def call() -> Tensor:
        with context():
            return torch.nn.functional.scaled_dot_product_attention(
                inputs.q, inputs.k, inputs.v, is_causal=causal, scale=scale,
                enable_gqa=inputs.grouped,
            )  # fmt: skip

    return call


def masked_call(
    program: Program, traced: Trace, inputs: Inputs, scale: float
) -> Callable[[], Tensor] | None:
    """SDPA with the mask and the added term in one matrix, made before; None if the score changes otherwise."""
    bias = added_term(program.score)
    if bias is None:
        return None
    sizes = inputs.sizes
    names = ("b", "h", "q", "k")
    places = [
        torch.arange(sizes[size], device=inputs.q.device).view(
            [-1 if i == place else 1 for i in range(4)]
        )
        for place, size in enumerate(("B", "H", "M", "N"))
    ]
    allowed = module(program.mask, traced, inputs, names)(*places).bool()
    matrix = allowed
    if bias is not Const(0.0):
        added = module(bias, traced, inputs, names)(*places)
        matrix = torch.where(allowed, added, -torch.inf).to(inputs.q.dtype)
    matrix = matrix.expand(*matrix.shape[:2], sizes["M"], sizes["N"]).contiguous()

    def call() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            inputs.q, inputs.k, inputs.v, attn_mask=matrix, scale=scale, enable_gqa=inputs.grouped
        )

    return call


def added_term(score: Expr) -> Expr | None:
    """What a score adds to the scaled dot product, None if it does anything else with it."""
    match score:
        case Dot():
            return Const(0.0)
        case Call("add", (a, b)) if Dot() not in walk(b):
            rest, sign = (a, b), "add"
        case Call("add", (a, b)) if Dot() not in walk(a):
            rest, sign = (b, a), "add"
        case Call("sub", (a, b)) if Dot() not in walk(b):
            rest, sign = (a, b), "sub"
        case _:
            return None
    inner = added_term(rest[0])
    return None if inner is None else Call(sign, (inner, rest[1]))
