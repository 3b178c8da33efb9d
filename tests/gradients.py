"""Turns a variant and a case into comparisons of its operator's gradients with float64 autograd of its formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker, Comparison, _compare

Leaves = dict[str, Tensor]
# out and kept statistics of a call with these leaves
Call = Callable[[Leaves], tuple[Tensor, dict[str, Tensor]]]


class GradientChecker(Checker):
    """Compiles a variant once; judges its gradients as ``Checker`` judges its results."""

    def gradients(self, case: Case) -> tuple[Comparison, ...]:
        """One comparison for q, k, v and each floating tensor; the loss weighs out and every kept statistic.

        The yardstick is the gradient that plain PyTorch computes in the same element type.
        """
        case = self.fitted(case)
        leaves, given = self.leaves(case)
        weights = loss_weights(leaves, case)

        def reference(dtype: torch.dtype | None) -> Call:
            def call(mine: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
                q, k, v, tensors = _parts(mine, given)
                result = attncompiler.oracle.attention(
                    self.variant, q, k, v, q_start=case.q_start, tensors=tensors, dtype=dtype
                )
                return result.out, result.stats

            return call

        wide = {name: x.double() for name, x in leaves.items()}
        exact = differentiated(reference(torch.float64), wide, weights)
        is_float64 = case.dtype == "float64"
        plain = differentiated(reference(torch.float32 if is_float64 else None), leaves, weights)
        found = differentiated(lambda mine: self.call(mine, given, case), leaves, weights)
        comparisons = []
        for name, x in leaves.items():
            assert found[name].dtype == x.dtype, name
            yardstick = plain[name].float() if is_float64 else plain[name]
            assert bool(exact[name].isfinite().all()), f"the definition's gradient of {name}"
            comparisons.append(_compare(f"d{name}", found[name], yardstick, exact[name]))
        return tuple(comparisons)

    def call(
        self, leaves: Leaves, given: dict[str, Any], case: Case
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The operator's results on leaves and the tensors that have no gradient."""
        q, k, v, tensors = _parts(leaves, given)
        result: tuple[Tensor, dict[str, Tensor]] = self.operator(
            q, k, v, q_start=case.q_start, return_stats=True, **tensors
        )
        return result

    def leaves(self, case: Case) -> tuple[Leaves, dict[str, Any]]:
        """What may have a gradient (q, k, v and floating tensors by name), and the other tensors."""
        q, k, v, tensors = self.inputs(case)
        leaves = {"q": q, "k": k, "v": v}
        leaves |= {name: t for name, t in tensors.items() if t.is_floating_point()}
        if case.dtype == "float64":
            leaves = {name: t.double() for name, t in leaves.items()}
        return leaves, {name: t for name, t in tensors.items() if name not in leaves}


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
        return drawn.to(like.dtype)

    return weights


def differentiated(
    call: Call, leaves: Leaves, weights: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The gradient of the weighted sum of the results for each leaf; zeros for what they do not depend on."""
    mine = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    out, stats = call(mine)
    results = [("out", out)] + [(name, x) for name, x in stats.items() if x.requires_grad]
    found = torch.autograd.grad(
        [x for _, x in results],
        list(mine.values()),
        [weights(name, x) for name, x in results],
        allow_unused=True,
    )
    pairs = zip(mine.items(), found, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def gradcheck(checker: GradientChecker, case: Case) -> None:
    """torch's own comparison with finite differences, which knows nothing of the oracle; raises when it fails."""
    case = checker.fitted(case)
    leaves, given = checker.leaves(case)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        out, stats = checker.call(dict(zip(leaves, values, strict=True)), given, case)
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


def _parts(
    leaves: Leaves, given: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    tensors = {name: x for name, x in leaves.items() if name not in ("q", "k", "v")}
    return leaves["q"], leaves["k"], leaves["v"], tensors | given
