"""Turns a call into an operator's gradients beside those that autograd finds for the variant's dense formulas.

The loss weighs the output and every kept statistic with random numbers. As for results, the yardstick of an element
type is plain PyTorch in that type: here the gradient its autograd finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attncompiler.cases import Case
from attncompiler.yardstick import completed

Leaves = dict[str, Tensor]
# The output and the kept statistics of a call with these leaves.
Call = Callable[[Leaves], tuple[Tensor, dict[str, Tensor]]]
# The same in a type, by dense PyTorch (None: in that of the leaves).
Reference = Callable[[Leaves, torch.dtype | None], tuple[Tensor, dict[str, Tensor]]]


def leaves_of(
    q: Tensor, k: Tensor, v: Tensor, tensors: Mapping[str, Tensor], dtype: str
) -> tuple[Leaves, dict[str, Tensor]]:
    """What may have a gradient (q, k, v and floating tensors, by name), and the other tensors.

    For float64 the tensors are float64 too, since a gradient comes back in the type of its tensor.
    """
    leaves = {"q": q, "k": k, "v": v}
    leaves |= {name: t for name, t in tensors.items() if t.is_floating_point()}
    if dtype == "float64":
        leaves = {name: t.double() for name, t in leaves.items()}
    return leaves, {name: t for name, t in tensors.items() if name not in leaves}


def arguments_of(
    leaves: Leaves, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """q, k, v and all tensors of a call."""
    tensors = {name: x for name, x in leaves.items() if name not in ("q", "k", "v")}
    return leaves["q"], leaves["k"], leaves["v"], {**tensors, **given}


def loss_weights(leaves: Leaves, case: Case) -> Callable[[str, Tensor], Tensor]:
    """Random weights of one result's elements: the same numbers whatever the type of the result.

    Case by case the weights of ``out`` lie in memory as [B, M, H, Dv], or are one number broadcast to all.
    """
    elements: torch.dtype = leaves["q"].dtype

    def weights(name: str, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(case.seed + 1000 + len(name))
        if name == "out" and case.layout == "broadcast":
            return torch.full((), 0.75, dtype=like.dtype).expand(like.shape)
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        if name == "out":
            drawn = drawn.to(elements)
            if case.layout == "swapped":
                drawn = drawn.transpose(1, 2).contiguous().transpose(1, 2)
        return drawn.to(like.device, like.dtype)

    return weights


def differentiated(
    call: Call, leaves: Leaves, weights: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The gradient of the weighted sum of the results for each leaf; zeros for what they do not depend on."""
    mine = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    out, stats = call(mine)
    named = [("out", out), *stats.items()]
    results = [(name, x) for name, x in named if x.requires_grad]
    found = torch.autograd.grad(
        [x for _, x in results],
        list(mine.values()),
        [weights(name, x) for name, x in results],
        allow_unused=True,
    )
    pairs = zip(mine.items(), found, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def gradients(
    reference: Reference,
    operator: Callable[..., Any],
    leaves: Leaves,
    given: Mapping[str, Any],
    case: Case,
    plain: Reference | None = None,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each leaf the operator's gradient, that of plain PyTorch in the same type, and the exact one.

    ``plain`` is the reference as plain PyTorch, if it sums in another order than the exact one.
    """
    weights = loss_weights(leaves, case)

    def mine(found: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, tensors = arguments_of(found, given)
        result: tuple[Tensor, dict[str, Tensor]] = operator(
            q, k, v, q_start=case.q_start, return_stats=True, **tensors
        )
        return result

    wide = {name: x.double() for name, x in leaves.items()}
    exact = differentiated(lambda x: reference(x, torch.float64), wide, weights)
    # The float64 oracle cannot judge itself: the yardstick of float64 is plain float32, or float64 in another order.
    is_narrow = case.dtype == "float64" and plain is None
    narrow, usual = torch.float32 if is_narrow else None, plain or reference
    rounded = completed(
        differentiated(lambda x: usual(x, narrow), leaves, weights),
        exact,
        lambda: differentiated(
            lambda x: usual(x, None), {n: x.float() for n, x in leaves.items()}, weights
        ),
    )
    found = differentiated(mine, leaves, weights)
    return {
        name: (found[name], rounded[name].float() if is_narrow else rounded[name], exact[name])
        for name in leaves
    }
