"""Gradients of a variant's operator in tests: torch's finite differences, and failures in words."""

from __future__ import annotations

import torch
from torch import Tensor

from attncompiler.cases import Case
from attncompiler.check import Checker, Comparison
from attncompiler.gradient_check import arguments_of, leaves_of
from attncompiler.variant import Variant


def gradcheck(checker: Checker, case: Case) -> None:
    """torch's own comparison with finite differences, which knows nothing of the oracle; raises when it fails."""
    case = checker.fitted(case)
    leaves, given = leaves_of(*checker.inputs(case), case.dtype)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        q, k, v, tensors = arguments_of(dict(zip(leaves, values, strict=True)), given)
        out, stats = checker.operator(q, k, v, q_start=case.q_start, return_stats=True, **tensors)
        # The difference of two infinities is no number.
        finite = [torch.where(x.isfinite(), x, 0.0) for x in stats.values()]
        return out, *(x for x in finite if x.requires_grad)

    values = [x.detach().clone().requires_grad_() for x in leaves.values()]
    assert torch.autograd.gradcheck(call, values, eps=1e-6, atol=1e-6, rtol=1e-4)


def describe(comparisons: tuple[Comparison, ...]) -> str:
    """The gradients that are too far off, one a line; empty when all pass."""
    return "\n".join(
        f"{c.what}{list(c.position)} is {c.found:.8g}, expected {c.expected:.8g}: error {c.error:.2e},"
        f" plain PyTorch {c.plain_error:.2e}, limit {c.limit:.2e}"
        for c in comparisons
        if not c.passed
    )


def row_major(variant: Variant) -> Variant:
    """The variant without its layout, for which any lengths will do; the same object when it has none."""
    if variant.layout is None:
        return variant
    plain = type(type(variant).__name__, (type(variant),), {"layout": None})
    view: Variant = object.__new__(plain)
    view.__dict__.update(variant.__dict__)
    return view
