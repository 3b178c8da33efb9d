"""The backend ``dense``: a variant's own formulas on dense tensors, when it is asked for by name.

Nothing falls back to it. It is the oracle behind an operator's call, for comparing and for debugging: it needs
memory for B x H x M x N scores and is differentiable.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import attncompiler.oracle
from attncompiler.runtime.arguments import refuse_positional, split_arguments
from attncompiler.runtime.module import AttentionModule
from attncompiler.user_code import shows_call
from attncompiler.variant import Variant


class DenseOperator:
    """The oracle with the call of an ``Operator``; computes in float64 and returns the dtype of q."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.name = type(variant).__name__

    def __repr__(self) -> str:
        return f"<attncompiler dense operator {self.name}>"

    @shows_call
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *more: object,
        q_start: int = 0,
        scale: float | None = None,
        return_stats: bool = False,
        **arguments: Any,
    ) -> Any:
        """See ``Operator``."""
        if more:
            refuse_positional(self.variant, len(more))
        params, tensors = split_arguments(self.variant, arguments)
        result = attncompiler.oracle.attention(
            self.variant, q, k, v, q_start=q_start, scale=scale, params=params, tensors=tensors
        )
        out = result.out.to(q.dtype)
        return (out, result.stats) if return_stats else out

    def module(self, **initial: Any) -> AttentionModule:
        """See ``Operator``."""
        return AttentionModule(self, initial)
